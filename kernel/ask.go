package kernel

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Attach types of enum bpf_attach_type, and map and program types and flags,
// as include/uapi/linux/bpf.h has them.
const (
	inet4Connect = unix.BPF_CGROUP_INET4_CONNECT
	inet6Connect = unix.BPF_CGROUP_INET6_CONNECT
	udp4Sendmsg  = unix.BPF_CGROUP_UDP4_SENDMSG
	udp6Sendmsg  = unix.BPF_CGROUP_UDP6_SENDMSG
	udp4Recvmsg  = unix.BPF_CGROUP_UDP4_RECVMSG
	udp6Recvmsg  = unix.BPF_CGROUP_UDP6_RECVMSG

	mapHash    = unix.BPF_MAP_TYPE_HASH
	mapArray   = unix.BPF_MAP_TYPE_ARRAY
	mapLRUHash = unix.BPF_MAP_TYPE_LRU_HASH
	mapLPMTrie = unix.BPF_MAP_TYPE_LPM_TRIE

	// Helpers, by their numbers in enum bpf_func_id.
	fnMapLookup     = 1
	fnMapUpdate     = 2
	fnMapDelete     = 3
	fnPrandom       = 7
	fnSocketCookie  = 46
	fnSpinLock      = 93
	fnSpinUnlock    = 94
	fnNetnsCookie   = 122
	fnRedirectNeigh = 152
	fnRedirectPeer  = 155
	fnKtimeCoarse   = 160
	fnSetRetval     = 187
	fnUnknown       = 9999 // none, for a long time to come

	flagNoPrealloc = unix.BPF_F_NO_PREALLOC
	flagMmapable   = unix.BPF_F_MMAPABLE
)

// allow is a connect-time program that lets everything pass. All hooks take
// the value 1; recvmsg and getpeername take no other.
func allow() []insn { return []insn{movImm(r0, 1), exit()} }

// load loads a program and lets go of it.
func load(progType, attachType uint32, insns []insn) error {
	fd, err := loadProgram(progType, attachType, insns)
	if err != nil {
		return absent(err)
	}
	return unix.Close(fd)
}

// sockAddr asks for a connect-time hook. The kernel checks the attach type
// when it loads the program (bpf_prog_load_check_attach), so two
// instructions tell, and nothing need be attached.
func sockAddr(attachType uint32) func(Config) error {
	return func(Config) error { return load(unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, attachType, allow()) }
}

// helper asks whether a program at connect() may hold these instructions.
func helper(insns ...insn) func(Config) error {
	return func(Config) error {
		return load(unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, inet4Connect, slices.Concat(insns, allow()))
	}
}

// schedCLS asks whether a program at traffic control may hold these instructions.
func schedCLS(insns ...insn) func(Config) error {
	return func(Config) error {
		return load(unix.BPF_PROG_TYPE_SCHED_CLS, 0, slices.Concat(insns, []insn{movImm(r0, 0), exit()}))
	}
}

// mapType asks for a kind of map, with keys and values of so many bytes.
func mapType(kind, key, value, flags uint32) func(Config) error {
	return func(Config) error {
		fd, err := createMap(mapAttr{mapType: kind, keySize: key, valueSize: value, maxEntries: 4, flags: flags})
		if err != nil {
			return absent(err)
		}
		return unix.Close(fd)
	}
}

// probeSyscall asks about a descriptor that is none: a kernel with bpf(2)
// says EBADFD (bpf_obj_get_info_by_fd).
func probeSyscall(Config) error {
	_, err := jitedLength(-1)
	switch {
	case errors.Is(err, unix.EBADFD), errors.Is(err, unix.EBADF):
		return nil
	case errors.Is(err, unix.ENOSYS):
		var s Standing
		if status, readErr := os.ReadFile("/proc/self/status"); readErr == nil {
			_ = s.readStatus(string(status)) // no CapEff: Seccomp is what counts here
		}
		if s.Seccomp {
			return err // some profiles answer ENOSYS for what they forbid
		}
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return err
}

// probeAttach asks to attach to a descriptor that is none. A kernel that
// knows cgroup programs gets as far as looking at it and says EBADF; one
// without CONFIG_CGROUP_BPF or without the flag says EINVAL before
// (bpf_prog_attach, cgroup_bpf_prog_attach).
func probeAttach(Config) error { return attachNowhere(unix.BPF_F_ALLOW_MULTI) }

// probeReplace is the same with BPF_F_REPLACE (commit 7dd68b3279f1, 5.6).
func probeReplace(Config) error { return attachNowhere(unix.BPF_F_ALLOW_MULTI | unix.BPF_F_REPLACE) }

func attachNowhere(flags uint32) error {
	prog, err := loadProgram(unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, inet4Connect, allow())
	if err != nil {
		return absent(err)
	}
	defer unix.Close(prog)
	return wantBadDescriptor(attachProgram(-1, prog, inet4Connect, flags))
}

func wantBadDescriptor(err error) error {
	switch {
	case err == nil:
		return errors.New("attach to no cgroup at all: it succeeded")
	case errors.Is(err, unix.EBADF):
		return nil
	}
	return absent(err)
}

// probeLink asks for a link between a real program and a descriptor that is
// none. With a program that is none, as others ask, any kernel with some kind
// of link says EBADF, even one without links for cgroups.
func probeLink(cfg Config) error {
	prog, err := loadProgram(unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, inet4Connect, allow())
	if err != nil {
		return absent(err)
	}
	defer unix.Close(prog)
	fd, err := createLink(prog, -1, inet4Connect)
	if err == nil {
		unix.Close(fd)
	}
	return usableLinks(wantBadDescriptor(err), probeLinkList(cfg))
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

func probeGetpeername(Config) error {
	for _, attachType := range []uint32{unix.BPF_CGROUP_INET4_GETPEERNAME, unix.BPF_CGROUP_INET6_GETPEERNAME} {
		if err := load(unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, attachType, allow()); err != nil {
			return err
		}
	}
	return nil
}

// frozenZero makes what becomes of .rodata: an array of one value, read-only
// for programs and then for everybody.
func frozenZero() (int, error) {
	fd, err := createMap(mapAttr{mapType: mapArray, keySize: 4, valueSize: 4, maxEntries: 1, flags: unix.BPF_F_RDONLY_PROG})
	if err != nil {
		return -1, err
	}
	if err := freezeMap(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func probeRodata(Config) error {
	return withFrozenZero(movReg(r2, r2)) // nothing after the load
}

// probeDeadBranch hides a call that no kernel knows behind a constant. Since
// 5.5 (commit a23740ec43ba) the verifier never looks there.
func probeDeadBranch(Config) error {
	err := withFrozenZero(jeqImm(r2, 0, 1), call(fnUnknown))
	if !errors.Is(err, ErrNotSupported) {
		return err
	}
	s, standingErr := standing()
	if standingErr != nil {
		return standingErr
	}
	return s.despiteSpeculation(err)
}

// withFrozenZero loads a program that reads the constant 0 into r2 and then
// holds the given instructions.
func withFrozenZero(then ...insn) error {
	fd, err := frozenZero()
	if err != nil {
		return absent(err)
	}
	defer unix.Close(fd)
	insns := append(mapValue(r1, fd), load32(r2, r1, 0))
	return load(unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, inet4Connect, slices.Concat(insns, then, allow()))
}

func probeMapHelpers(Config) error {
	fd, err := createMap(mapAttr{mapType: mapHash, keySize: 8, valueSize: 8, maxEntries: 4})
	if err != nil {
		return absent(err)
	}
	defer unix.Close(fd)
	key := []insn{movReg(r2, r10), addImm(r2, -8)}
	insns := slices.Concat(
		[]insn{storeImm(r10, -8, 0)},
		mapPtr(r1, fd), key, []insn{call(fnMapLookup)}, // look up
		mapPtr(r1, fd), key, []insn{movReg(r3, r2), movImm(r4, 0), call(fnMapUpdate)}, // update
		mapPtr(r1, fd), key, []insn{call(fnMapDelete)}, // delete
	)
	return load(unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, inet4Connect, append(insns, allow()...))
}

func probeBTF(Config) error {
	blob, _, _ := spinLockBTF()
	fd, err := loadBTF(blob)
	if err != nil {
		return absent(err)
	}
	return unix.Close(fd)
}

// probeSpinLock asks for what tcp_rev_nat_update does (bpf/lib/sock_rev_nat.h): a
// program at connect() takes the lock that stands in an array's value, and
// gives it back.
func probeSpinLock(Config) error { return takeLock(mapArray, call(fnSpinUnlock)) }

// takeLock loads a program that takes a lock in a map's value. It ends with
// the given instructions; r1 points to the lock again before them.
func takeLock(mapType uint32, then ...insn) error {
	fd, err := lockMap(mapType)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	locked := append([]insn{
		movReg(r6, r0), movReg(r1, r0), call(fnSpinLock), // of the value that was found
		movReg(r1, r6),
	}, then...)
	return load(unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, inet4Connect, slices.Concat(
		[]insn{storeImm(r10, -8, 0)},
		mapPtr(r1, fd), []insn{movReg(r2, r10), addImm(r2, -8), call(fnMapLookup)},
		[]insn{jeqImm(r0, 0, int16(len(locked)))}, locked,
		allow(),
	))
}

// lockMap returns the descriptor of a new map with a lock in its values. Close it.
func lockMap(mapType uint32) (int, error) {
	blob, key, value := spinLockBTF()
	btf, err := loadBTF(blob)
	if err != nil {
		return -1, absent(err)
	}
	defer unix.Close(btf)
	fd, err := createMap(mapAttr{mapType: mapType, keySize: 4, valueSize: 8, maxEntries: 4, btfFD: uint32(btf), btfKey: key, btfValue: value})
	return fd, absent(err)
}

func probeBatch(Config) error {
	fd, err := createMap(mapAttr{mapType: mapHash, keySize: 4, valueSize: 4, maxEntries: 4})
	if err != nil {
		return absent(err)
	}
	defer unix.Close(fd)
	return absent(updateBatch(fd, []uint32{1, 2}, []uint32{3, 4}))
}
