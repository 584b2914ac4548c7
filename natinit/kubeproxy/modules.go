package kubeproxy

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// nfTables tells whether the kernel has nf_tables in it right now. The first
// message to an absent one would load it (nfnetlink.c, request_module), and a
// look must change nothing.
func (d *Detector) nfTables() (Answer, string) {
	loaded, err := os.ReadFile(filepath.Join(d.proc, "modules"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Yes, "" // a kernel without modules: nothing can be loaded
	case err != nil:
		return Unknown, "not asked, for that could load a module: " + err.Error()
	case hasModule(loaded, "nf_tables"):
		return Yes, ""
	}
	// Not loaded, unless it is built in, which /proc/modules doesn't say.
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return Unknown, os.NewSyscallError("uname", err).Error()
	}
	release := unix.ByteSliceToString(uts.Release[:])
	for _, dir := range []string{"/lib/modules", "/usr/lib/modules"} {
		builtin, err := os.ReadFile(filepath.Join(d.root, dir, release, "modules.builtin"))
		if err != nil {
			continue
		}
		if bytes.Contains(builtin, []byte("/nf_tables.ko\n")) {
			return Yes, ""
		}
		return No, "nf_tables is not loaded"
	}
	return Unknown, "nf_tables is not loaded, or built in: not asked, for that could load it (no /lib/modules/" + release + "/modules.builtin)"
}

// hasModule looks for a name at the start of a line of /proc/modules.
func hasModule(modules []byte, name string) bool {
	for line := range bytes.Lines(modules) {
		if rest, ok := bytes.CutPrefix(line, []byte(name)); ok && bytes.HasPrefix(rest, []byte(" ")) {
			return true
		}
	}
	return false
}
