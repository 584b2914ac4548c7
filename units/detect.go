package units

import (
	"path"
	"strconv"
	"strings"
)

// InitKind is who starts things on the host.
type InitKind string

// The kinds that we treat differently.
const (
	Systemd InitKind = "systemd"
	OpenRC  InitKind = "openrc"
	// FstabInit is another init with a sign that it mounts what /etc/fstab
	// lists: sysvinit, busybox, runit.
	FstabInit InitKind = "fstab"
	// NoInit is anything else: a container, Talos, an init of one's own.
	NoInit InitKind = "none"
)

// Init says who starts things on the host and how we know.
type Init struct {
	Kind InitKind `json:"kind"`
	// Version of systemd; 0 when it could not be found out.
	Version int `json:"version,omitempty"`
	// Source is the evidence, a path or a D-Bus property.
	Source string `json:"source,omitempty"`
}

// DetectInit looks at the files below root only. systemd and OpenRC count when
// they run, not when they are merely installed: /run/systemd/system is the test
// of sd_booted(3), /run/openrc the one of OpenRC's own tools.
func DetectInit(root string) Init {
	t := newTree(Config{Root: root})
	if n, err := t.lstat("/run/systemd/system"); err == nil && n.mode.IsDir() {
		version, source := systemdVersion(t)
		if source == "" {
			source = "/run/systemd/system"
		}
		return Init{Kind: Systemd, Version: version, Source: source}
	}
	if t.exists("/run/openrc") {
		return Init{Kind: OpenRC, Source: "/run/openrc"}
	}
	if t.exists("/etc/fstab") {
		// inittab: sysvinit and busybox, whose scripts or lines mount -a;
		// runit: Void's core-services do.
		for _, sign := range []string{"/etc/inittab", "/etc/runit"} {
			if t.exists(sign) {
				return Init{Kind: FstabInit, Source: sign}
			}
		}
	}
	n, err := t.look("/proc/1/comm")
	if name := strings.TrimSpace(string(n.data)); err == nil && name != "" {
		return Init{Kind: NoInit, Source: "pid 1 is " + name}
	}
	return Init{Kind: NoInit}
}

// DetectInstalled looks at what a root would boot with, where it does not run: an
// image that is built.
func DetectInstalled(root string) Init {
	t := newTree(Config{Root: root})
	for _, sign := range []string{"/usr/lib/systemd", "/lib/systemd", "/usr/lib64/systemd"} {
		if t.exists(sign) && t.exists(path.Dir(systemDir)) {
			version, source := systemdVersion(t)
			if source == "" {
				source = sign
			}
			return Init{Kind: Systemd, Version: version, Source: source}
		}
	}
	for _, sign := range []string{"/sbin/openrc-run", "/usr/sbin/openrc-run"} {
		if t.exists(sign) {
			return Init{Kind: OpenRC, Source: sign}
		}
	}
	return Init{Kind: NoInit}
}

// systemdVersion reads the version from the name of systemd's shared library,
// which every build since 231 carries: libsystemd-shared-252.so, Fedora's
// libsystemd-shared-255.4-1.fc40.so. Two versions, in the middle of an
// upgrade, are no answer. The source is the file.
func systemdVersion(t tree) (version int, source string) {
	dirs := []string{"/usr/lib/systemd", "/lib/systemd", "/usr/lib64/systemd"}
	for _, name := range t.names("/usr/lib") { // Debian 12: /usr/lib/x86_64-linux-gnu/systemd
		if strings.Contains(name, "-linux-") {
			dirs = append(dirs, path.Join("/usr/lib", name, "systemd"))
		}
	}
	for _, dir := range dirs {
		for _, name := range t.names(dir) {
			rest, ok := strings.CutPrefix(name, "libsystemd-shared-")
			if !ok || !strings.HasSuffix(name, ".so") {
				continue
			}
			v := parseVersion(rest)
			if v == 0 || version != 0 && v != version {
				return 0, ""
			}
			if version == 0 { // /lib may be a link to /usr/lib
				version, source = v, path.Join(dir, name)
			}
		}
	}
	return version, source
}

// parseVersion takes the major version from what systemd says of itself in
// its Version property: "252.38-1~deb12u1", "v239", "systemd 219". 0 is none.
func parseVersion(s string) int {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "systemd "), "v")
	end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(s)
	}
	n, err := strconv.Atoi(s[:end])
	if err != nil {
		return 0
	}
	return n
}
