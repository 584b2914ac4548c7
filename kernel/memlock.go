package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// memcgSince is when the kernel began to count the memory of maps by cgroup
// and no longer against RLIMIT_MEMLOCK (commit 5.11: "bpf: Eliminate
// rlimit-based memory accounting").
var memcgSince = Version{Major: 5, Minor: 11}

// Memlock is what was done about RLIMIT_MEMLOCK.
type Memlock struct {
	Needed bool   `json:"needed"`           // the kernel counts map memory against it
	Before uint64 `json:"before"`           // bytes, the soft limit; 1<<64-1 is no limit
	Raised bool   `json:"raised,omitempty"` // it was raised to no limit
	Error  string `json:"error,omitempty"`  // why it could not be raised
}

// String states it in words.
func (m Memlock) String() string {
	switch {
	case !m.Needed:
		return "not raised: this kernel counts map memory by cgroup"
	case m.Error != "":
		return fmt.Sprintf("is %s and could not be raised: %s; add CAP_SYS_RESOURCE or start with `ulimit -l unlimited`", bytesWord(m.Before), m.Error)
	case m.Raised:
		return fmt.Sprintf("raised from %s to unlimited for this process: before Linux 5.11 map memory counts against it", bytesWord(m.Before))
	}
	return "is unlimited already"
}

func bytesWord(n uint64) string {
	if n == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return fmt.Sprintf("%d bytes", n)
}

// RaiseMemlock lifts RLIMIT_MEMLOCK of this process where the kernel counts
// map memory against it: mainline before 5.11, and every RHEL 8, whose later
// minor releases count by cgroup but can't be told apart surely.
// It must run before the first map is created.
func RaiseMemlock(h Host) Memlock {
	return raiseMemlock(h, func(limit, old *unix.Rlimit) error {
		return unix.Prlimit(0, unix.RLIMIT_MEMLOCK, limit, old)
	})
}

func raiseMemlock(h Host, prlimit func(limit, old *unix.Rlimit) error) Memlock {
	m := Memlock{Needed: !h.Release.AtLeast(memcgSince)}
	if !m.Needed {
		return m
	}
	var old unix.Rlimit
	if err := prlimit(nil, &old); err != nil {
		m.Error = fmt.Sprintf("read RLIMIT_MEMLOCK: %v", err)
		return m
	}
	m.Before = old.Cur
	if old.Cur == unix.RLIM_INFINITY {
		return m
	}
	if err := prlimit(&unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}, nil); err != nil {
		m.Error = fmt.Sprintf("set RLIMIT_MEMLOCK: %v", err)
		return m
	}
	m.Raised = true
	return m
}
