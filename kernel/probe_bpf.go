package kernel

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
)

// unknownHelper is one that no kernel has, for a long time to come.
const unknownHelper = asm.BuiltinFunc(9999)

// enotsupp is the kernel's internal errno that leaks from map operations.
const enotsupp = syscall.Errno(524)

// absent turns the errors by which a kernel says that it does not know
// something into ErrNotSupported, and leaves every other error alone.
//
// EACCES is the verifier's word for a forbidden access and a security
// module's for a forbidden call; only the verifier gives a reason with it.
// ENOSYS comes from a kernel without bpf(2) and from some seccomp profiles.
func absent(err error) error {
	var errno syscall.Errno
	var refused *ebpf.VerifierError
	errors.As(err, &errno)
	said := errors.As(err, &refused) && len(refused.Log) > 0
	known := []syscall.Errno{unix.EINVAL, unix.E2BIG, enotsupp, unix.EOPNOTSUPP}
	if errors.Is(err, ebpf.ErrNotSupported) || slices.Contains(known, errno) || errno == unix.EACCES && said {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return err
}

// allow is a connect-time program that lets everything pass. All hooks take
// the value 1; recvmsg and getpeername take no other.
func allow() asm.Instructions { return asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()} }

// load returns a loaded program. Close it.
func load(progType ebpf.ProgramType, attach ebpf.AttachType, insns asm.Instructions) (*ebpf.Program, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: progType, AttachType: attach, License: "Dual BSD/GPL", Instructions: insns})
	return prog, absent(err)
}

// atConnect returns a loaded program at connect(). Close it.
func atConnect(insns ...asm.Instruction) (*ebpf.Program, error) {
	return load(ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, append(insns, allow()...))
}

// loads closes what was loaded.
func loads(prog *ebpf.Program, err error) error {
	if err != nil {
		return err
	}
	return prog.Close()
}

// sockAddr asks for connect-time hooks. The kernel checks the attach type
// when it loads the program (bpf_prog_load_check_attach), so two
// instructions tell, and nothing need be attached.
func sockAddr(hooks ...ebpf.AttachType) func(Config) error {
	return func(Config) error {
		for _, hook := range hooks {
			if err := loads(load(ebpf.CGroupSockAddr, hook, allow())); err != nil {
				return err
			}
		}
		return nil
	}
}

// helper asks whether programs of a type may call a helper.
func helper(progType ebpf.ProgramType, fn asm.BuiltinFunc) func(Config) error {
	return func(Config) error { return absent(features.HaveProgramHelper(progType, fn)) }
}

// calls asks whether a program at connect() may hold these instructions. At
// init this is cheaper than helper, which loads two or three programs and
// always has the verifier write its log.
func calls(insns ...asm.Instruction) func(Config) error {
	return func(Config) error { return loads(atConnect(insns...)) }
}

// probeMapHelpers asks for all three in one program.
func probeMapHelpers(Config) error {
	m, err := newMap(ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 4})
	if err != nil {
		return err
	}
	defer m.Close()
	key := asm.Instructions{asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -8)}
	return loads(atConnect(slices.Concat(
		asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.StoreMem(asm.R10, -8, asm.R0, asm.DWord)},
		key, asm.Instructions{asm.FnMapLookupElem.Call()},
		key, asm.Instructions{asm.Mov.Reg(asm.R3, asm.R2), asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call()},
		key, asm.Instructions{asm.FnMapDeleteElem.Call()},
	)...))
}

func progType(t ebpf.ProgramType) func(Config) error {
	return func(Config) error { return absent(features.HaveProgramType(t)) }
}

func mapType(t ebpf.MapType) func(Config) error {
	return func(Config) error { return absent(features.HaveMapType(t)) }
}

func probeMmapable(Config) error { return absent(features.HaveMapFlag(features.BPF_F_MMAPABLE)) }
func probeJmp32(Config) error    { return absent(features.HaveV3ISA()) }

// probeSyscall asks for the oldest kind of map, by which bpf(2) came.
func probeSyscall(Config) error {
	err := features.HaveMapType(ebpf.Hash)
	if errors.Is(err, unix.ENOSYS) {
		if privileges.Seccomp() {
			return err // some profiles answer ENOSYS for what they forbid
		}
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return absent(err)
}

// noDescriptor is above the highest descriptor that a kernel ever gives
// (sysctl_nr_open_max in fs/file.c).
const noDescriptor = 1 << 30

// attachNowhere asks to attach to a descriptor that is none. A kernel that
// knows cgroup programs gets as far as looking at it and says EBADF; one
// without CONFIG_CGROUP_BPF or without the flag says EINVAL before
// (bpf_prog_attach, cgroup_bpf_prog_attach).
func attachNowhere(flags uint32, replace bool) func(Config) error {
	return func(Config) error {
		prog, err := atConnect()
		if err != nil {
			return err
		}
		defer prog.Close()
		opts := link.RawAttachProgramOptions{Target: noDescriptor, Program: prog, Attach: ebpf.AttachCGroupInet4Connect, Flags: flags}
		if replace {
			opts.Anchor = link.ReplaceProgram(prog)
		}
		return wantErrno(link.RawAttachProgram(opts), unix.EBADF)
	}
}

// wantErrno wants the error by which a kernel refuses a target that is none.
func wantErrno(err error, want syscall.Errno) error {
	switch {
	case err == nil:
		return errors.New("attach to nothing at all: it succeeded")
	case errors.Is(err, want):
		return nil
	}
	return absent(err)
}

// linkNowhere asks for a link between a program and a descriptor that is none.
func linkNowhere(prog *ebpf.Program) error {
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: noDescriptor, Program: prog, Attach: ebpf.AttachCGroupInet4Connect})
	if err == nil {
		l.Close()
	}
	return wantErrno(err, unix.EBADF)
}

// probeLink asks with a real program. With a program that is none, as others
// ask, any kernel with some kind of link says EBADF, even one without links
// for cgroups.
func probeLink(cfg Config) error {
	prog, err := atConnect()
	if err != nil {
		return err
	}
	defer prog.Close()
	return usableLinks(linkNowhere(prog), probeLinkList(cfg))
}

// usableLinks wants links of which the kernel tells what they are (commit
// f2e10bff16a0, 5.8): those of 5.7 can't be recognized when they are found
// again by their pins. Only a link could be asked for that, so it is known by
// the list of links, which is of the same series. A list that may not be seen
// (CAP_SYS_ADMIN) is there.
func usableLinks(made, listed error) error {
	if made == nil && errors.Is(listed, ErrNotSupported) {
		return fmt.Errorf("links can be made, but the kernel doesn't describe them: %w", listed)
	}
	return made
}

// probeLinkList asks for the first link of the machine. That there is none is an
// answer too (commit 2d602c8cf40d, 5.8), and so is one that is still being made.
func probeLinkList(Config) error {
	var it link.Iterator
	defer it.Close()
	if it.Next() || errors.Is(it.Err(), unix.EAGAIN) {
		return nil
	}
	return absent(it.Err())
}

// probeTCX asks for a link on a device that is none: a kernel with tcx looks
// for it and says ENODEV (tcx_link_attach).
func probeTCX(Config) error {
	prog, err := load(ebpf.SchedCLS, ebpf.AttachNone, asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()})
	if err != nil {
		return err
	}
	defer prog.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: 1<<31 - 1, Program: prog, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		l.Close()
	}
	return wantErrno(err, unix.ENODEV)
}

// probeJIT loads a program and asks for its machine code. The sysctl
// net.core.bpf_jit_enable is only there in the initial network namespace.
func probeJIT(Config) error {
	prog, err := atConnect()
	if err != nil {
		return err
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return err
	}
	// Zero is also what the kernel tells those whom it does not trust; they
	// could not have loaded the program (bpf_prog_get_info_by_fd).
	if _, err := info.JitedSize(); err != nil {
		return fmt.Errorf("%w: the loaded program has no machine code", ErrNotSupported)
	}
	return nil
}

// mayAsk tells a refusal for lack of rights, which the library takes for a no
// where it looks for the reason itself: it asks for a map that takes the same
// rights.
func mayAsk() error {
	if err := features.HaveMapType(ebpf.LRUHash); !errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	return nil
}

// newMap returns a new map. Close it.
func newMap(spec ebpf.MapSpec) (*ebpf.Map, error) {
	if err := mayAsk(); err != nil {
		return nil, err
	}
	m, err := ebpf.NewMap(&spec)
	return m, absent(err)
}

// frozenZero makes what becomes of .rodata: an array of one value, read-only
// for programs and then for everybody. Close it.
func frozenZero() (*ebpf.Map, error) {
	m, err := newMap(ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1, Flags: unix.BPF_F_RDONLY_PROG})
	if err != nil {
		return nil, err
	}
	if err := m.Freeze(); err != nil {
		m.Close()
		return nil, absent(err)
	}
	return m, nil
}

func probeRodata(Config) error { return withFrozenZero() }

// probeDeadBranch hides a call that no kernel knows behind a constant. Since
// 5.5 (commit a23740ec43ba) the verifier never looks there.
func probeDeadBranch(Config) error {
	err := withFrozenZero(asm.JEq.Imm(asm.R2, 0, "allow"), unknownHelper.Call())
	if !errors.Is(err, ErrNotSupported) {
		return err
	}
	p, readErr := privileges.Read()
	if readErr != nil {
		return readErr
	}
	return despiteSpeculation(p, err)
}

// despiteSpeculation judges the verifier's refusal of a branch that is never
// taken. Of a process without CAP_PERFMON the verifier looks into such
// branches on kernels up to 6.15 too, as a processor may on speculation
// (commit 9183671af6db, Linux 5.13, in stable releases from 5.10 on): that
// says nothing of the kernel. The error is then EPERM, no longer
// ErrNotSupported.
func despiteSpeculation(p privileges.Privileges, refusal error) error {
	if p.Has(unix.CAP_PERFMON) || p.Has(unix.CAP_SYS_ADMIN) || p.LastCap < unix.CAP_PERFMON {
		return refusal
	}
	return fmt.Errorf("without CAP_PERFMON the verifier reads dead branches on newer kernels too: %w", unix.EPERM)
}

// withFrozenZero loads a program that reads the constant 0 into r2 and then
// holds the given instructions, which may jump to "allow".
func withFrozenZero(then ...asm.Instruction) error {
	m, err := frozenZero()
	if err != nil {
		return err
	}
	defer m.Close()
	insns := append(asm.Instructions{asm.LoadMapValue(asm.R1, m.FD(), 0), asm.LoadMem(asm.R2, asm.R1, 0, asm.Word)}, then...)
	end := allow()
	end[0] = end[0].WithSymbol("allow")
	return loads(load(ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, append(insns, end...)))
}

// probeBTF loads the types of a value with a lock.
func probeBTF(Config) error {
	if err := mayAsk(); err != nil {
		return err
	}
	b, err := btf.NewBuilder([]btf.Type{lockedValue()}, nil)
	if err != nil {
		return err
	}
	h, err := btf.NewHandle(b)
	if err != nil {
		return absent(err)
	}
	return h.Close()
}

// lockedValue is struct value { struct bpf_spin_lock lock; int x; }.
func lockedValue() btf.Type {
	number := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	lock := &btf.Struct{Name: "bpf_spin_lock", Size: 4, Members: []btf.Member{{Name: "val", Type: number}}}
	return &btf.Struct{Name: "value", Size: 8, Members: []btf.Member{{Name: "lock", Type: lock}, {Name: "x", Type: number, Offset: 32}}}
}

// probeSpinLock asks for what the programs do for the way back: a
// program at connect() takes the lock in an array's value, and gives it back.
func probeSpinLock(Config) error { return takeLock(ebpf.Array, asm.FnSpinUnlock.Call()) }

// takeLock loads a program that takes a lock in a map's value. It ends with
// the given instructions; r1 points to the lock again before them.
func takeLock(t ebpf.MapType, then ...asm.Instruction) error {
	m, err := newMap(ebpf.MapSpec{Type: t, KeySize: 4, ValueSize: 8, MaxEntries: 4, Key: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}, Value: lockedValue()})
	if err != nil {
		return err
	}
	defer m.Close()
	end := allow()
	end[0] = end[0].WithSymbol("allow")
	return loads(load(ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, slices.Concat(asm.Instructions{
		asm.StoreImm(asm.R10, -8, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -8),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "allow"),
		asm.Mov.Reg(asm.R6, asm.R0), asm.Mov.Reg(asm.R1, asm.R0),
		asm.FnSpinLock.Call(),
		asm.Mov.Reg(asm.R1, asm.R6),
	}, then, end)))
}

func probeBatch(Config) error {
	m, err := newMap(ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 4})
	if err != nil {
		return err
	}
	defer m.Close()
	n, err := m.BatchUpdate([]uint32{1, 2}, []uint32{3, 4}, nil)
	if err == nil && n != 2 {
		return fmt.Errorf("update a map in a batch: %d of 2 pairs were written", n)
	}
	return absent(err)
}
