package lab

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Refusal is a system call that the kernel shall answer with an error, as an older kernel, a kernel without a part, or a
// container's seccomp profile does.
type Refusal struct {
	Call  uintptr
	First *uint32 // only where the first argument is this; nil: whatever it is
	Errno unix.Errno
}

// Refuse makes system calls of this process, of all of its threads and of its children, fail from now on. There is no way
// back: call it in a process that was started for it.
func Refuse(refusals ...Refusal) error {
	const ( // struct seccomp_data
		offCall, offFirst = 0, 16
		allow, errno      = 0x7fff0000, 0x00050000
		setFilter, tsync  = 1, 1 // SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
	)
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	unless := func(k uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: skip}
	}
	give := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	var filter []unix.SockFilter
	for _, r := range refusals {
		if r.First == nil {
			filter = append(filter, load(offCall), unless(uint32(r.Call), 1))
		} else {
			filter = append(filter, load(offCall), unless(uint32(r.Call), 3), load(offFirst), unless(*r.First, 1))
		}
		filter = append(filter, give(errno|uint32(r.Errno)))
	}
	filter = append(filter, give(allow))
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("refuse system calls: %w", err)
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, err := unix.Syscall(unix.SYS_SECCOMP, setFilter, tsync, uintptr(unsafe.Pointer(&program))); err != 0 {
		return fmt.Errorf("refuse system calls: %w", err)
	}
	return nil
}
