package lab

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Features are the optional abilities of the running kernel, field by field those of bpf.Features, which it converts to.
// Tests of packages below package kernel use them in order to run on old kernels too. They are found out by other means
// than the product's; that a kernel has what its version should have is asserted in test/vm.
type Features struct {
	Link, Batch, NetnsCookie, GetPeername, ContextSock, SetRetval bool
}

// KernelFeatures asks the running kernel, once. It panics if the kernel can't be asked, as for lack of rights.
var KernelFeatures = sync.OnceValue(func() Features {
	return Features{
		Link:        answered(haveLink()),
		Batch:       answered(haveBatch()),
		NetnsCookie: answered(haveHelper(asm.Mov.Imm(asm.R1, 0), asm.FnGetNetnsCookie)),
		GetPeername: answered(haveGetPeername()),
		ContextSock: answered(haveContextSock()),
		SetRetval:   answered(haveHelper(asm.Mov.Imm(asm.R1, -111), asm.FnSetRetval)),
	}
})

func answered(err error) bool {
	if err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
		panic("ask the kernel for its features: " + err.Error())
	}
	return err == nil
}

func loadSockAddr(at ebpf.AttachType, first ...asm.Instruction) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: at,
		Instructions: append(first, asm.Mov.Imm(asm.R0, 1), asm.Return()),
	})
}

// haveHelper calls a helper with an argument that it takes: what kernels say of wrong ones differs.
func haveHelper(argument asm.Instruction, helper asm.BuiltinFunc) error {
	p, err := loadSockAddr(ebpf.AttachCGroupInet4Connect, argument, helper.Call())
	if errors.Is(err, unix.EINVAL) {
		return errors.Join(ebpf.ErrNotSupported, err)
	}
	if err != nil {
		return err
	}
	return p.Close()
}

// haveLink makes a link to no cgroup at all: who knows links complains about that.
func haveLink() error {
	p, err := loadSockAddr(ebpf.AttachCGroupInet4Connect)
	if err != nil {
		return err
	}
	defer p.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: 1 << 20, Program: p, Attach: ebpf.AttachCGroupInet4Connect})
	switch {
	case err == nil:
		l.Close()
		return errors.New("a link to no cgroup was made")
	case errors.Is(err, unix.EBADF):
		return describesLinks()
	case errors.Is(err, unix.EINVAL):
		return errors.Join(ebpf.ErrNotSupported, err)
	}
	return err
}

// describesLinks tells whether the kernel says what a link is, which came together with their list (5.8).
func describesLinks() error {
	links := new(link.Iterator)
	defer links.Close()
	links.Next()
	if err := links.Err(); errors.Is(err, unix.EINVAL) {
		return errors.Join(ebpf.ErrNotSupported, err)
	}
	return nil
}

func haveBatch() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	if err != nil {
		return err
	}
	defer m.Close()
	_, err = m.BatchUpdate([]uint32{1, 2}, []uint32{1, 2}, nil)
	return err
}

func haveGetPeername() error {
	p, err := loadSockAddr(ebpf.AttachCgroupInet4GetPeername)
	if errors.Is(err, unix.EINVAL) {
		return errors.Join(ebpf.ErrNotSupported, err)
	}
	if err != nil {
		return err
	}
	return p.Close()
}

// haveContextSock reads an address of the context's socket; a kernel without it says that the access is not allowed.
func haveContextSock() error {
	p, err := loadSockAddr(ebpf.AttachCGroupInet4Connect,
		asm.LoadMem(asm.R1, asm.R1, 64, asm.DWord), asm.LoadMem(asm.R1, asm.R1, 24, asm.Word))
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL) {
		return errors.Join(ebpf.ErrNotSupported, err)
	}
	if err != nil {
		return err
	}
	return p.Close()
}

// NeedsLinux skips a test on kernels below a mainline version. The reason names what the test itself needs, which must
// not be what it tests.
func NeedsLinux(t testing.TB, major, minor int, why string) {
	t.Helper()
	if a, b := running(); a < major || a == major && b < minor {
		t.Skipf("needs Linux %d.%d: %s", major, minor, why)
	}
}

// running is the version of this kernel. It panics if it can't be read.
func running() (major, minor int) {
	var uts unix.Utsname
	err := unix.Uname(&uts)
	release := unix.ByteSliceToString(uts.Release[:])
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil || n != 2 {
		panic(fmt.Sprintf("read the kernel's release %q: %v", release, err))
	}
	return major, minor
}
