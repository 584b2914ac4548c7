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
)

// Standing is what this process may do. It explains probes that could not
// tell, and keeps one from saying no (despiteSpeculation).
type Standing struct {
	Container     string   `json:"container,omitempty"` // how it shows that we are in one; empty: it does not
	Capabilities  uint64   `json:"capabilities"`        // the effective set, bit n is capability n
	Missing       []string `json:"missing_capabilities,omitempty"`
	LastCap       int      `json:"last_cap"` // the newest capability that the kernel knows: 39 is CAP_BPF (5.8)
	UserNamespace bool     `json:"user_namespace,omitempty"`
	Seccomp       bool     `json:"seccomp,omitempty"` // a filter is in force
}

// A Capability and the kernels on which it is needed.
type capability struct {
	bit  int
	name string
}

// hasCapBPF tells whether the kernel split CAP_BPF off CAP_SYS_ADMIN
// (Linux 5.8, commit a17b53c4a4b5; RHEL 8 has it from some minor release on).
// The number of the last capability is exact where versions mislead.
func (s Standing) hasCapBPF() bool { return s.LastCap >= unix.CAP_BPF }

// Needed lists the capabilities that loading and attaching need on this kernel.
func (s Standing) needed() []capability {
	if s.hasCapBPF() {
		return []capability{{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}}
	}
	return []capability{{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}}
}

// despiteSpeculation judges the verifier's refusal of a branch that is never
// taken. Of a process without CAP_PERFMON the verifier looks into such
// branches on kernels up to 6.15 too, as a processor may on speculation
// (commit 9183671af6db, Linux 5.13, in stable releases from 5.10 on): that
// says nothing of the kernel. The error is then EPERM, no longer
// ErrNotSupported.
func (s Standing) despiteSpeculation(refusal error) error {
	may := s.Capabilities>>unix.CAP_PERFMON&1 == 1 || s.Capabilities>>unix.CAP_SYS_ADMIN&1 == 1
	if may || s.LastCap < unix.CAP_PERFMON {
		return refusal
	}
	return fmt.Errorf("without CAP_PERFMON the verifier reads dead branches on newer kernels too: %w", unix.EPERM)
}

// missing names the needed capabilities that the process lacks. CAP_SYS_ADMIN
// stands in for CAP_BPF (bpf_capable in include/linux/capability.h).
func (s Standing) missing() []string {
	var names []string
	for _, c := range s.needed() {
		have := s.Capabilities>>c.bit&1 == 1
		if c.bit == unix.CAP_BPF {
			have = have || s.Capabilities>>unix.CAP_SYS_ADMIN&1 == 1
		}
		if !have {
			names = append(names, c.name)
		}
	}
	return names
}

// Advice says what to do about a refusal for lack of rights.
func (s Standing) Advice() string {
	switch {
	case len(s.Missing) > 0:
		advice := "run as root, or add " + strings.Join(s.Missing, " and ")
		if !s.hasCapBPF() {
			advice += " (before Linux 5.8 there is no CAP_BPF)"
		} else if s.Missing[0] == "CAP_BPF" {
			// See the README: it isn't enough for a second run, status and uninstall.
			advice += " (CAP_BPF is enough to load programs; to open them by id, as init, status and uninstall do, takes CAP_SYS_ADMIN, which is CAP_BPF too)"
		}
		return advice
	case s.UserNamespace:
		return "run in the initial user namespace: capabilities inside another one don't count for bpf(2)"
	case s.Seccomp:
		return "allow bpf(2) in the seccomp profile (containers: privileged, or seccompProfile Unconfined)"
	}
	return "the capabilities are there, so look at SELinux, AppArmor or another security module (the audit log names it)"
}

func standing() (Standing, error) {
	s := Standing{Container: container("/")}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return s, fmt.Errorf("read this process's capabilities: %v", err)
	}
	if err := s.readStatus(string(status)); err != nil {
		return s, err
	}
	if text, err := os.ReadFile("/proc/sys/kernel/cap_last_cap"); err != nil {
		return s, fmt.Errorf("read the newest capability: %v", err)
	} else if s.LastCap, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		return s, fmt.Errorf("read the newest capability: %v", err)
	}
	s.Missing = s.missing()
	uids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // CONFIG_USER_NS=n has none
		return s, fmt.Errorf("read this process's user namespace: %v", err)
	}
	s.UserNamespace = err == nil && !isInitialUIDMap(string(uids))
	return s, nil
}

// readStatus reads CapEff and Seccomp of /proc/self/status. The effective set
// of the calling thread would do as well; all our threads have the same.
func (s *Standing) readStatus(status string) error {
	found := false
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch name {
		case "CapEff":
			n, err := strconv.ParseUint(value, 16, 64)
			if err != nil {
				return fmt.Errorf("read this process's capabilities from %q: %v", value, err)
			}
			s.Capabilities, found = n, true
		case "Seccomp":
			s.Seccomp = value != "0"
		}
	}
	if !found {
		return errors.New("read this process's capabilities: no CapEff in /proc/self/status")
	}
	return nil
}

// isInitialUIDMap knows the one line that only the initial user namespace has.
func isInitialUIDMap(text string) bool {
	fields := strings.Fields(text)
	return len(fields) == 3 && fields[0] == "0" && fields[1] == "0" && fields[2] == "4294967295"
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
