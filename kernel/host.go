package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
)

// Host is what is known about the machine and about what this process may do
// on it, before any probe.
type Host struct {
	Release      Release               `json:"release"`
	Mainline     Version               `json:"mainline,omitzero"` // the true version, where the release hides it (Debian, Ubuntu)
	Uname        string                `json:"uname"`             // `uname -v`
	ProcVersion  string                `json:"proc_version,omitempty"`
	Vendor       string                `json:"vendor,omitempty"` // who built the kernel, as far as it says
	Distribution Distribution          `json:"distribution"`
	Machine      string                `json:"machine"`   // x86_64, aarch64
	PageSize     int                   `json:"page_size"` // bytes
	Privileges   privileges.Privileges `json:"standing"`
	Lockdown     string                `json:"lockdown,omitempty"` // none, integrity, confidentiality; empty: not known
	Problems     []string              `json:"problems,omitempty"` // what could not be read, and what contradicts itself
}

// Inspect reads the host that lies below root ("" or "/": this one). What
// can't be read is listed in Problems: none of it is worth a refusal.
func Inspect(root string) Host {
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		return inspect(root, "", "", "", fmt.Errorf("call uname: %v", err))
	}
	return inspect(root,
		unix.ByteSliceToString(uname.Release[:]),
		unix.ByteSliceToString(uname.Version[:]),
		unix.ByteSliceToString(uname.Machine[:]), nil)
}

func inspect(root, release, version, machine string, err error) Host {
	h := Host{Uname: version, Machine: machine, PageSize: os.Getpagesize()}
	problem := func(err error) {
		if err != nil {
			h.Problems = append(h.Problems, err.Error())
		}
	}
	problem(err)
	h.Release, err = ParseRelease(release)
	if err != nil {
		h.Release.Text = release
		problem(err)
	}

	text, err := readProc(root, "version")
	if err != nil {
		problem(fmt.Errorf("read /proc/version: %v", err))
	}
	h.ProcVersion = strings.TrimSpace(text)
	h.readBuild(problem)
	if text, err := readProc(root, "version_signature"); err == nil { // Ubuntu only
		if v := signatureVersion(text); !v.IsZero() {
			h.Mainline = v
		}
	}

	h.Distribution, err = readDistribution(root)
	problem(err)
	h.Privileges, err = privileges.Read()
	problem(err)
	h.Lockdown, err = lockdown(root)
	problem(err)
	return h
}

// readBuild fills in what the build strings say. /proc/version has the
// builder and the compiler, which `uname -v` lacks.
func (h *Host) readBuild(problem func(error)) {
	for _, line := range []string{h.Release.Text + " " + h.Uname, h.ProcVersion} {
		if strings.TrimSpace(line) == "" {
			continue
		}
		u, err := ParseUnameRV(line)
		if err != nil {
			if line == h.ProcVersion {
				problem(err)
			}
			continue
		}
		if u.Release.Text != h.Release.Text {
			problem(fmt.Errorf("compare the releases: uname says %s, /proc/version says %s: one of them is another machine's, or a personality hides it", h.Release.Text, u.Release.Text))
			continue
		}
		if h.Mainline.IsZero() {
			h.Mainline = u.Mainline
		}
		if h.Vendor == "" {
			h.Vendor = u.Vendor
		}
	}
}

// readProc reads a file of /proc, preferring the host's. A container often
// has the host's root without its /proc; all of them show the same kernel.
func readProc(root, name string) (string, error) {
	text, err := os.ReadFile(filepath.Join("/", root, "proc", name))
	if errors.Is(err, fs.ErrNotExist) && root != "" && root != "/" {
		text, err = os.ReadFile(filepath.Join("/proc", name))
	}
	return string(text), err
}

// lockdown reads "none [integrity] confidentiality". securityfs is often not
// mounted, and then nothing is known.
func lockdown(root string) (string, error) {
	text, err := os.ReadFile(filepath.Join("/", root, "sys/kernel/security/lockdown"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the lockdown state: %v", err)
	}
	_, after, _ := strings.Cut(string(text), "[")
	state, _, ok := strings.Cut(after, "]")
	if !ok {
		return "", fmt.Errorf("read the lockdown state: no choice in %q", text)
	}
	return state, nil
}

// Version returns the true mainline version where it is known, else that of
// the release.
func (h Host) Version() Version {
	if !h.Mainline.IsZero() {
		return h.Mainline
	}
	return h.Release.Version
}

// EL returns the major release of Enterprise Linux whose own kernel this is,
// and how that was recognised; 0 for any other kernel. Oracle's UEK and
// elrepo's kernels are built for Enterprise Linux and are near mainline.
//
// The tag in the release (.el8) decides. Rebuilds may carry a tag of their own
// (4.18.0-348.an8); they count when the kernel's builder or compiler is Red Hat's, or
// the host's os-release names RHEL, and nothing names another family.
func (h Host) EL() (major int, why string) {
	r := h.Release
	switch {
	case r.UEK || r.Version.Patch != 0 || r.RC != 0:
		return 0, "" // RHEL kernels are always x.y.0
	case r.EL != 0:
		return r.EL, fmt.Sprintf("the release ends in .el%d", r.EL)
	case r.Version != elVersion || len(r.Build) == 0:
		return 0, ""
	case h.Vendor == "ubuntu" || h.Vendor == "debian" || h.Distribution.Is("debian", "ubuntu"):
		return 0, ""
	case strings.Contains(r.Text, "-"+strconv.Itoa(r.Build[0])+"-"):
		return 0, "" // 4.18.0-20-generic: RHEL separates with dots
	case h.Vendor == "redhat":
		return 8, "/proc/version names Red Hat's builder or compiler"
	case h.Distribution.Is("rhel", "centos"):
		return 8, "os-release names " + h.Distribution.ID + ", which is RHEL or like it"
	}
	return 0, ""
}

// elVersion is what RHEL 8 calls itself in all its minor releases.
var elVersion = Version{Major: 4, Minor: 18}

// String is one line: the kernel, the distribution, the machine.
func (h Host) String() string {
	s := "Linux " + h.Release.Text
	if !h.Mainline.IsZero() && h.Mainline != h.Release.Version {
		s += " (mainline " + h.Mainline.String() + ")"
	}
	if name := h.Distribution.PrettyName; name != "" {
		s += ", " + name
	} else if h.Distribution.ID != "" {
		s += ", " + h.Distribution.ID
	}
	if h.Machine != "" {
		s += ", " + h.Machine
	}
	if h.Privileges.Container != "" {
		s += ", in a container (" + h.Privileges.Container + ")"
	}
	return s
}
