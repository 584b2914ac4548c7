package kernel

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
)

// The refusal of a dead branch says something of a kernel only to a process of which no speculation is feared.
func TestDespiteSpeculation(t *testing.T) {
	const perfmon, admin, bpf = 1 << unix.CAP_PERFMON, 1 << unix.CAP_SYS_ADMIN, 1 << unix.CAP_BPF
	for name, tc := range map[string]struct {
		s    privileges.Privileges
		want error
	}{
		"with CAP_PERFMON":               {privileges.Privileges{LastCap: 40, Capabilities: bpf | perfmon}, ErrNotSupported},
		"with CAP_SYS_ADMIN":             {privileges.Privileges{LastCap: 40, Capabilities: admin}, ErrNotSupported},
		"with CAP_BPF alone":             {privileges.Privileges{LastCap: 40, Capabilities: bpf}, unix.EPERM},
		"before there was a CAP_PERFMON": {privileges.Privileges{LastCap: 37}, ErrNotSupported},
	} {
		err := despiteSpeculation(tc.s, fmt.Errorf("%w: x", ErrNotSupported))
		if !errors.Is(err, tc.want) || errors.Is(err, ErrNotSupported) != (tc.want == ErrNotSupported) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
}

// The probes are only as good as their "no". Each of these asks for what no
// kernel has, in the same way as the probe named.
func TestProbesSayNo(t *testing.T) {
	needRoot(t)
	for sentence, ask := range map[string]func(Config) error{
		"connect4: an attach type that is not for sock_addr":        sockAddr(ebpf.AttachCGroupInetIngress),
		"connect4: an attach type beyond any kernel's":              sockAddr(9999),
		"helper: a helper beyond any kernel's":                      helper(ebpf.CGroupSockAddr, unknownHelper),
		"helper: a helper that sock_addr programs don't have":       helper(ebpf.CGroupSockAddr, asm.FnRedirectPeer),
		"sched-cls: a helper that sched_cls programs don't have":    helper(ebpf.SchedCLS, asm.FnSetRetval),
		"cgroup-attach: a flag beyond any kernel's":                 attachNowhere(1<<30, false),
		"dead-branch: the same call where the constant leads there": func(Config) error { return withFrozenZero(asm.JNE.Imm(asm.R2, 0, "allow"), unknownHelper.Call()) },
		"bpffs: a file system that nobody has":                      fileSystem("firsthopfs"),
		"cgroup-link: a link to a cgroup for a tc program": func(Config) error {
			prog, err := load(ebpf.SchedCLS, ebpf.AttachNone, asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()})
			if err != nil {
				return err
			}
			defer prog.Close()
			return linkNowhere(prog)
		},
		"spin-lock: a lock in a kind of map that takes none": func(Config) error { return takeLock(ebpf.LRUHash, asm.FnSpinUnlock.Call()) },
		"spin-lock: a lock that is not given back":           func(Config) error { return takeLock(ebpf.Array) },
	} {
		if err := ask(Config{}); !errors.Is(err, ErrNotSupported) {
			t.Errorf("%s: %v, want ErrNotSupported", sentence, err)
		}
	}
	err := helper(ebpf.CGroupSockAddr, unknownHelper)(Config{})
	if !strings.Contains(err.Error(), "9999") {
		t.Errorf("the verifier's reason is lost: %v", err)
	}
}

func TestFrozenZeroIsReadOnly(t *testing.T) {
	needRoot(t)
	m, err := frozenZero()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := loads(atConnect(asm.LoadMapValue(asm.R1, m.FD(), 0), asm.StoreImm(asm.R1, 0, 1, asm.Word))); !errors.Is(err, ErrNotSupported) {
		t.Errorf("a program that writes the frozen map: %v, want a no", err)
	}
	if err := m.Put(uint32(0), uint32(7)); !errors.Is(err, unix.EPERM) {
		t.Errorf("user space writes the frozen map: %v, want EPERM", err)
	}
}

// Linux 5.7 makes links and describes none; a pod without CAP_SYS_ADMIN may not list those of newer kernels.
func TestUsableLinks(t *testing.T) {
	failed := func(errno syscall.Errno) error { return absent(errno) }
	for _, tc := range []struct {
		name         string
		made, listed error
		none         bool
	}{
		{"5.8", nil, nil, false},
		{"5.8, without CAP_SYS_ADMIN", nil, failed(unix.EPERM), false},
		{"5.7", nil, failed(unix.EINVAL), true},
		{"5.3", failed(unix.EINVAL), failed(unix.EINVAL), true},
	} {
		err := usableLinks(tc.made, tc.listed)
		if none := errors.Is(err, ErrNotSupported); none != tc.none || !none && err != nil {
			t.Errorf("Linux %s: %v, want no links: %t", tc.name, err, tc.none)
		}
	}
}
