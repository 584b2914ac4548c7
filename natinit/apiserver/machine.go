package apiserver

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

// Machine tells this machine from others, so that addresses that were saved in
// an image are not taken for those of the machine that it runs on. Its fields
// are hashes: machine-id(5) asks that the id itself is not shown around.
type Machine struct {
	ID      string `json:"id,omitempty"`      // of /etc/machine-id
	Product string `json:"product,omitempty"` // of the firmware's UUID
}

// MachineOf reads what the host has; fields are empty where there is nothing.
func MachineOf(root string) Machine {
	read := func(path string) string {
		b, err := hostfs.FS{Root: root}.ReadFile(path)
		if err != nil {
			return ""
		}
		return strings.ToLower(strings.TrimSpace(string(b)))
	}
	var m Machine
	id := read("/etc/machine-id")
	if id == "" {
		id = read("/var/lib/dbus/machine-id")
	}
	if len(id) == 32 { // not "uninitialized"
		m.ID = machineHash(id)
	}
	if uuid := read("/sys/class/dmi/id/product_uuid"); len(uuid) == 36 && !placeholderUUID(uuid) {
		m.Product = machineHash(uuid)
	}
	return m
}

// placeholderUUID reports UUIDs that vendors have put into many machines, as
// systemd knows them (src/libsystemd/sd-id128/id128-util.c).
func placeholderUUID(uuid string) bool {
	digits := strings.ReplaceAll(uuid, "-", "")
	return strings.Trim(digits, digits[:1]) == "" ||
		uuid == "03000200-0400-0500-0006-000700080009" || uuid == "00020003-0004-0005-0006-000700080009"
}

func machineHash(id string) string {
	h := sha256.Sum256([]byte("firsthop saved addresses " + id))
	return hex.EncodeToString(h[:16])
}

// differs says what tells that two are not the same machine, "" if nothing does.
func (m Machine) differs(o Machine) string {
	switch {
	case m.ID != "" && o.ID != "" && m.ID != o.ID:
		return "its machine-id is another"
	case m.Product != "" && o.Product != "" && m.Product != o.Product:
		return "its product UUID is another"
	}
	return ""
}
