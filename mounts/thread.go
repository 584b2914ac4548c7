package mounts

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// onThread runs fn on a thread that ends afterwards, so fn may leave it in any
// namespace. A goroutine that returns while locked takes its thread with it,
// with one exception: the main thread is only parked, and /proc/self shows the
// namespaces of the main thread. So fn never runs there.
func onThread(fn func() error) error {
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// While we hold the main thread, the next goroutine gets another.
			errs <- onThread(fn)
			runtime.UnlockOSThread()
			return
		}
		// CLONE_FS: the kernel refuses setns to a mount namespace while root
		// and working directory are shared with other threads, and a change of
		// them must not be seen by the others.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			errs <- fmt.Errorf("unshare the thread's file system state: %w", err)
			return
		}
		errs <- fn()
	}()
	return <-errs
}

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
		return onThread(func() error { return fn(v) })
	}
	// Opened before the first setns: afterwards /proc is another one.
	dir, err := os.Open(h.entry)
	if err != nil {
		return fmt.Errorf("open %s: %w", h.entry, err)
	}
	defer dir.Close()
	return onThread(func() error {
		if cgroup && !h.ownCgroup {
			if err := enter(dir, "cgroup", unix.CLONE_NEWCGROUP); err != nil {
				return err
			}
		}
		if !h.own {
			if err := enter(dir, "mnt", unix.CLONE_NEWNS); err != nil {
				return err
			}
			// setns made the namespace's root ours; h's first process has the
			// same one unless it is chrooted, which an init is not.
			v = view{table: func() (*os.File, error) { return openAt(dir, "mountinfo") }}
		}
		return fn(v)
	})
}

// enter moves the calling thread into a namespace of the process at dir.
func enter(dir *os.File, kind string, flag int) error {
	name := dir.Name() + "/ns/" + kind
	fd, err := unix.Openat(int(dir.Fd()), "ns/"+kind, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return refused("open", name, err, unix.CAP_SYS_PTRACE)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, flag); err != nil {
		needs := []int{unix.CAP_SYS_ADMIN}
		if flag == unix.CLONE_NEWNS {
			needs = append(needs, unix.CAP_SYS_CHROOT)
		}
		return refused("setns", name, err, needs...)
	}
	return nil
}

func openAt(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), dir.Name()+"/"+name), nil
}

func capName(c int) string {
	switch c {
	case unix.CAP_SYS_CHROOT:
		return "CAP_SYS_CHROOT"
	case unix.CAP_SYS_PTRACE:
		return "CAP_SYS_PTRACE"
	case unix.CAP_SYS_ADMIN:
		return "CAP_SYS_ADMIN"
	}
	return fmt.Sprintf("capability %d", c)
}

// missingCaps names those capabilities that the calling thread lacks.
func missingCaps(caps ...int) []string {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return nil
	}
	var names []string
	for _, c := range caps {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			names = append(names, capName(c))
		}
	}
	return names
}

// refused explains why a call failed: the missing capability if there is one,
// else, for EPERM and EACCES, that a security module must be at work.
func refused(call, target string, err error, caps ...int) error {
	err = fmt.Errorf("%s %s: %w", call, target, err)
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return err
	}
	if missing := missingCaps(caps...); len(missing) > 0 {
		return fmt.Errorf("%w: %w: this process lacks %s (run the container privileged, or add it)", ErrRefused, err, strings.Join(missing, " and "))
	}
	return fmt.Errorf("%w: %w: the capabilities are there, so a security module (SELinux, AppArmor, seccomp) refuses it: see the audit log", ErrRefused, err)
}
