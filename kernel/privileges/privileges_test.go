package privileges

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestContainer(t *testing.T) {
	for _, test := range []struct{ sentence, path, text, want string }{
		{"docker leaves a file", ".dockerenv", "", "docker"},
		{"podman leaves a file", "run/.containerenv", "", "podman"},
		{"a pod has secrets", "var/run/secrets/kubernetes.io/serviceaccount/token", "x", "kubernetes"},
		{"systemd-nspawn tells systemd", "run/systemd/container", "systemd-nspawn\n", "systemd-nspawn"},
		{"a pod's cgroup", "proc/self/cgroup", "0::/kubepods.slice/pod1\n", "kubepods"},
		{"a plain host", "proc/self/cgroup", "0::/init.scope\n", ""},
	} {
		root := t.TempDir()
		write(t, filepath.Join(root, test.path), test.text)
		if got := container(root); got != test.want {
			t.Errorf("%s: %q, want %q", test.sentence, got, test.want)
		}
	}
}

// The kernel's own word for it is CapEff, of the same thread: others may have lost theirs.
func TestReadSaysWhatTheKernelSays(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		t.Fatal(err)
	}
	var mask uint64
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			if mask, err = strconv.ParseUint(strings.TrimSpace(value), 16, 64); err != nil {
				t.Fatal(err)
			}
		}
	}
	if p.Capabilities != mask {
		t.Errorf("the capabilities are %x, want %x", p.Capabilities, mask)
	}
	if p.LastCap < unix.CAP_AUDIT_READ || p.LastCap > 63 {
		t.Errorf("the newest capability is %d", p.LastCap)
	}
}

func TestAdvice(t *testing.T) {
	bits := func(caps ...int) (set uint64) {
		for _, c := range caps {
			set |= 1 << c
		}
		return set
	}
	for _, test := range []struct {
		sentence string
		p        Privileges
		says     string
	}{
		{"before 5.8 loading needs CAP_SYS_ADMIN", Privileges{LastCap: 37}, "add CAP_SYS_ADMIN and CAP_NET_ADMIN (before Linux 5.8 there is no CAP_BPF)"},
		{"before 5.8 CAP_NET_ADMIN does not do alone", Privileges{LastCap: 37, Capabilities: bits(unix.CAP_NET_ADMIN)}, "add CAP_SYS_ADMIN (before"},
		{"from 5.8 on CAP_BPF does", Privileges{LastCap: 40}, "add CAP_BPF and CAP_NET_ADMIN"},
		{"who adds CAP_BPF and then lacks CAP_SYS_ADMIN is told before", Privileges{LastCap: 40}, "takes CAP_SYS_ADMIN"},
		{"from 5.8 on CAP_SYS_ADMIN still does", Privileges{LastCap: 40, Capabilities: bits(unix.CAP_SYS_ADMIN)}, "add CAP_NET_ADMIN"},
		{"in a user namespace all capabilities are there and none counts", Privileges{LastCap: 40, Capabilities: 1<<41 - 1, UserNamespace: true}, "initial user namespace"},
		{"a seccomp filter", Privileges{LastCap: 40, Capabilities: 1<<41 - 1, Seccomp: true}, "seccomp"},
		{"nothing of these: a security module", Privileges{LastCap: 40, Capabilities: 1<<41 - 1}, "SELinux"},
	} {
		test.p.Missing = test.p.missing()
		if got := test.p.Advice(); !strings.Contains(got, test.says) {
			t.Errorf("%s: %q, want %q in it", test.sentence, got, test.says)
		}
	}
}
