package mounts

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/ns"
)

// inside runs fn in the mount namespace of h, and with cgroup in the cgroup
// namespace of h's first process too. fn gets the view from there. When we are
// in these already it runs in place, else as aside does.
func (h *Host) inside(cgroup bool, fn func(view) error) error {
	if h.entry == "" || (h.own && (!cgroup || h.ownCgroup)) {
		runtime.LockOSThread() // for /proc/thread-self
		defer runtime.UnlockOSThread()
		return fn(h.view())
	}
	return h.aside(cgroup, fn)
}

// aside is inside, always on a thread of its own that fn may leave in any
// namespace. (A goroutine that fn starts is elsewhere: Go makes its threads
// from one that never left the process's namespaces.)
func (h *Host) aside(cgroup bool, fn func(view) error) error {
	v := h.view()
	if h.entry == "" {
		return ns.Do(func() error { return fn(v) })
	}
	// Opened before the first setns: afterwards /proc is another one.
	dir, err := os.Open(h.entry)
	if err != nil {
		return fmt.Errorf("open %s: %w", h.entry, err)
	}
	defer dir.Close()
	return ns.Do(func() error {
		if cgroup && !h.ownCgroup {
			if err := ns.EnterOf(dir, unix.CLONE_NEWCGROUP); err != nil {
				return err
			}
		}
		if !h.own {
			if err := ns.EnterOf(dir, unix.CLONE_NEWNS); err != nil {
				return err
			}
			// setns made the namespace's root ours; h's first process has the
			// same one unless it is chrooted, which an init is not.
			v = view{table: func() (*os.File, error) { return openAt(dir, "mountinfo") }}
		}
		return fn(v)
	})
}

func openAt(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), dir.Name()+"/"+name), nil
}
