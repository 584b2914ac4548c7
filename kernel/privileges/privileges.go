// Package privileges says what this process may do, and explains what it may not. It is the one place that reads
// capabilities.
package privileges

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// Privileges is what this process may do.
type Privileges struct {
	Container     string   `json:"container,omitempty"` // how it shows that we are in one; empty: it does not
	Capabilities  uint64   `json:"capabilities"`        // the effective set, bit n is capability n
	Missing       []string `json:"missing_capabilities,omitempty"`
	LastCap       int      `json:"last_cap"` // the newest capability that the kernel knows: 39 is CAP_BPF (5.8)
	UserNamespace bool     `json:"user_namespace,omitempty"`
	Seccomp       bool     `json:"seccomp,omitempty"` // a filter is in force
}

// Read reads those of this process.
func Read() (Privileges, error) {
	p := Privileges{Container: container("/"), Seccomp: Seccomp()}
	caps, err := effective()
	if err != nil {
		return p, err
	}
	last, err := capability.LastCap()
	if err != nil {
		return p, fmt.Errorf("read the newest capability: %w", err)
	}
	p.LastCap = int(last)
	for c := range last + 1 {
		if caps.Get(capability.EFFECTIVE, c) {
			p.Capabilities |= 1 << c
		}
	}
	p.Missing = p.missing()
	p.UserNamespace, err = inUserNamespace()
	return p, err
}

// effective reads the capabilities of the calling thread.
func effective() (capability.Capabilities, error) {
	caps, err := capability.NewPid2(0)
	if err == nil {
		err = caps.Load()
	}
	if err != nil {
		return nil, fmt.Errorf("read this process's capabilities: %w", err)
	}
	return caps, nil
}

// Has reports whether the effective set has a capability.
func (p Privileges) Has(c capability.Cap) bool { return p.Capabilities>>c&1 == 1 }

// HasCapBPF tells whether the kernel split CAP_BPF off CAP_SYS_ADMIN
// (Linux 5.8, commit a17b53c4a4b5; RHEL 8 has it from some minor release on).
// The number of the last capability is exact where versions mislead.
func (p Privileges) HasCapBPF() bool { return p.LastCap >= unix.CAP_BPF }

// WithoutCapBPF are the privileges as on a kernel without CAP_BPF.
func (p Privileges) WithoutCapBPF() Privileges {
	p.LastCap = min(p.LastCap, unix.CAP_PERFMON-1)
	p.Missing = p.missing()
	return p
}

// missing names the capabilities that loading and attaching need on this
// kernel and the process lacks. CAP_SYS_ADMIN stands in for CAP_BPF
// (bpf_capable in include/linux/capability.h).
func (p Privileges) missing() []string {
	load := capability.CAP_SYS_ADMIN
	if p.HasCapBPF() && !p.Has(load) {
		load = capability.CAP_BPF
	}
	var names []string
	for _, c := range []capability.Cap{load, capability.CAP_NET_ADMIN} {
		if !p.Has(c) {
			names = append(names, name(c))
		}
	}
	return names
}

func name(c capability.Cap) string { return "CAP_" + strings.ToUpper(c.String()) }

// Advice says what to do about a refusal for lack of rights.
func (p Privileges) Advice() string {
	switch {
	case len(p.Missing) > 0:
		advice := "run as root, or add " + strings.Join(p.Missing, " and ")
		if !p.HasCapBPF() {
			advice += " (before Linux 5.8 there is no CAP_BPF)"
		} else if p.Missing[0] == "CAP_BPF" {
			// See the README: it isn't enough for a second run, status and uninstall.
			advice += " (CAP_BPF is enough to load programs; to open them by id, as init, status and uninstall do, takes CAP_SYS_ADMIN, which is CAP_BPF too)"
		}
		return advice
	case p.UserNamespace:
		return "run in the initial user namespace: capabilities inside another one don't count for bpf(2)"
	case p.Seccomp:
		return "allow bpf(2) in the seccomp profile (containers: privileged, or seccompProfile Unconfined)"
	}
	return "the capabilities are there, so look at SELinux, AppArmor or another security module (the audit log names it)"
}

// AsRoot is the advice that covers every command: to open objects by their id takes CAP_SYS_ADMIN, where CAP_BPF (Linux
// 5.8) wouldn't do (kernel/bpf/syscall.c, bpf_prog_get_fd_by_id).
const AsRoot = "run as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN"

// MayDetach says what a removal lacks. A pin is a file, which its owner can
// remove with no capability: without this a removal would take away what it
// may unlink, and fail at what it may not detach.
func MayDetach() error {
	if inside, err := inUserNamespace(); err == nil && inside {
		return errors.New("remove programs and pins: this is root of a user namespace only, whose capabilities do not count for that: run as the machine's root")
	}
	caps, err := effective()
	if err != nil {
		return err
	}
	if !caps.Get(capability.EFFECTIVE, capability.CAP_SYS_ADMIN) {
		return fmt.Errorf("remove programs and pins: CAP_SYS_ADMIN is missing, by which they are detached and looked up: %w: %s", unix.EPERM, AsRoot)
	}
	return nil
}

// ErrRefused says that the kernel or a security module refused a call. The text says what is missing.
var ErrRefused = errors.New("refused")

// Refused explains why a call failed: the capabilities that the calling thread lacks, if any of those it needs, else,
// for EPERM and EACCES, that a security module must be at work. Those errors match [ErrRefused].
func Refused(call, target string, err error, needs ...capability.Cap) error {
	err = fmt.Errorf("%s %s: %w", call, target, err)
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return err
	}
	var missing []string
	if caps, readErr := effective(); readErr == nil {
		for _, c := range needs {
			if !caps.Get(capability.EFFECTIVE, c) {
				missing = append(missing, name(c))
			}
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %w: this process lacks %s (run the container privileged, or add it)", ErrRefused, err, strings.Join(missing, " and "))
	}
	return fmt.Errorf("%w: %w: the capabilities are there, so a security module (SELinux, AppArmor, seccomp) refuses it: see the audit log", ErrRefused, err)
}

// Seccomp reports whether a filter of system calls is in force.
func Seccomp() bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "Seccomp:"); ok {
			return strings.TrimSpace(value) != "0"
		}
	}
	return false
}

// inUserNamespace knows the one line of uid_map that only the initial user namespace has.
func inUserNamespace() (bool, error) {
	uids, err := os.ReadFile("/proc/self/uid_map")
	if errors.Is(err, fs.ErrNotExist) { // CONFIG_USER_NS=n has none
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read this process's user namespace: %w", err)
	}
	return strings.Join(strings.Fields(string(uids)), " ") != "0 0 4294967295", nil
}

// container looks for the marks that container runtimes leave. There is no
// sure sign; this is for words in the report, never for a decision.
func container(root string) string {
	for _, mark := range []struct{ path, word string }{
		{".dockerenv", "docker"},
		{"run/.containerenv", "podman"},
		{"var/run/secrets/kubernetes.io", "kubernetes"},
	} {
		if _, err := os.Lstat(filepath.Join(root, mark.path)); err == nil {
			return mark.word
		}
	}
	if text, err := os.ReadFile(filepath.Join(root, "run/systemd/container")); err == nil {
		return strings.TrimSpace(string(text))
	}
	cgroups, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return ""
	}
	for _, word := range []string{"kubepods", "libpod", "docker", "cri-containerd", "crio", "lxc"} {
		if strings.Contains(string(cgroups), word) {
			return word
		}
	}
	return ""
}
