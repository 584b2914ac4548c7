package kernel

import (
	"fmt"
	"strings"
)

// Uname is one line about a kernel: `uname -rv`, or /proc/version.
type Uname struct {
	Release  Release `json:"release"`
	Build    string  `json:"build"`             // all that follows the release: who built it, when, with what
	Mainline Version `json:"mainline,omitzero"` // the true version, where Debian's build names it behind an ABI name
	Vendor   string  `json:"vendor,omitempty"`  // ubuntu, debian, redhat: as far as the build says
}

// ParseUnameRV reads a line of `uname -rv`, or of /proc/version, which has
// the words "Linux version" before it:
//
//	5.4.0-42-generic #46-Ubuntu SMP Fri Jul 10 00:24:02 UTC 2020
//	4.18.0-193.el8.x86_64 (mockbuild@x86-vm-08.build.eng.bos.redhat.com)
//	Linux version 4.19.0-27-amd64 (debian-kernel@lists.debian.org) (gcc …) #1 SMP Debian 4.19.316-1 (2024-06-25)
func ParseUnameRV(line string) (Uname, error) {
	line = strings.TrimSpace(line)
	line = strings.TrimPrefix(line, "Linux version ")
	text, build, _ := strings.Cut(line, " ")
	release, err := ParseRelease(text)
	if err != nil {
		return Uname{}, fmt.Errorf("read the kernel from %.80q: %w", line, err)
	}
	build = strings.TrimSpace(build)
	return Uname{
		Release:  release,
		Build:    build,
		Mainline: debianVersion(build),
		Vendor:   vendor(build),
	}, nil
}

// debianVersion finds the 5.10.237 of "#1 SMP Debian 5.10.237-1 (2025-05-19)".
// Debian's `uname -r` has the name of the ABI (5.10.0-35-amd64), which stays
// for the whole life of a stable release.
func debianVersion(build string) Version {
	_, after, ok := strings.Cut(build, " Debian ")
	if !ok {
		return Version{}
	}
	text, _, _ := strings.Cut(after, " ")
	release, err := ParseRelease(text)
	if err != nil {
		return Version{}
	}
	return release.Version
}

// vendor names who built a kernel. The compiler names its distribution too
// ("gcc (Ubuntu 9.4.0)"), which says where it was built, so the marks of the
// kernel package itself come first.
func vendor(build string) string {
	lower := strings.ToLower(build)
	for _, mark := range []struct{ in, vendor string }{
		{"-ubuntu", "ubuntu"},
		{"debian-kernel@", "debian"},
		{"smp debian ", "debian"},
		{" debian ", "debian"},
		{"@amazon", "amazon"},
		{"redhat.com", "redhat"},
		{"centos.org", "redhat"},
		{"rockylinux.org", "redhat"},
		{"almalinux.org", "redhat"},
		{"(ubuntu ", "ubuntu"},
		{"(debian ", "debian"},
		{"(red hat ", "redhat"},
	} {
		if strings.Contains(lower, mark.in) {
			return mark.vendor
		}
	}
	return ""
}

// signatureVersion reads Ubuntu's /proc/version_signature, whose third word
// is the mainline version: "Ubuntu 5.4.0-42.46-generic 5.4.44".
func signatureVersion(signature string) Version {
	fields := strings.Fields(signature)
	if len(fields) != 3 {
		return Version{}
	}
	release, err := ParseRelease(fields[2])
	if err != nil {
		return Version{}
	}
	return release.Version
}
