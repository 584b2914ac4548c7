// Package ns runs functions in other namespaces.
//
// setns and unshare change one thread, and Go moves goroutines between threads. So everything of that kind runs by [Do],
// on a thread that ends with the work: none that other goroutines use is ever elsewhere, whatever fails.
package ns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrRefused says that the kernel or a security module refused a call. The text says what is missing.
var ErrRefused = errors.New("refused")

// Do runs fn on a thread that ends afterwards, so fn may leave it in any namespace. What fn opens there (sockets, not
// names) stays there; goroutines that it starts are not there, for Go makes their threads from one that never left.
//
// A goroutine that returns while it is locked takes its thread with it. The main thread is the exception: it is only
// parked, and /proc/self shows its namespaces as the process's. So fn never runs there.
func Do(fn func() error) error {
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			errs <- Do(fn) // while we hold the main thread, the next goroutine gets another
			runtime.UnlockOSThread()
			return
		}
		defer close(errs) // also when fn ends the goroutine, as a test's does
		errs <- fn()
	}()
	return <-errs
}

// files are the names below a process's ns directory.
var files = map[int]string{unix.CLONE_NEWNS: "mnt", unix.CLONE_NEWNET: "net", unix.CLONE_NEWCGROUP: "cgroup"}

// EnterOf moves the calling thread, which must be one of [Do], into a namespace (CLONE_NEW…) of the process whose
// directory in /proc is open.
func EnterOf(process *os.File, kind int) error {
	name := "ns/" + files[kind]
	fd, err := unix.Openat(int(process.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Refused("open", process.Name()+"/"+name, err, unix.CAP_SYS_PTRACE)
	}
	defer unix.Close(fd)
	return Enter(fd, process.Name()+"/"+name, kind)
}

// Enter is EnterOf for the file of a namespace.
func Enter(fd int, name string, kind int) error {
	needs := []int{unix.CAP_SYS_ADMIN}
	if kind == unix.CLONE_NEWNS {
		needs = append(needs, unix.CAP_SYS_CHROOT)
		// The kernel refuses it while root and working directory are shared with other threads, who must not see a
		// change of them.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare the thread's file system state: %w", err)
		}
	}
	if err := unix.Setns(fd, kind); err != nil {
		return Refused("setns", name, err, needs...)
	}
	return nil
}

// UnshareMounts gives the calling thread, which must be one of [Do], a copy of its mounts that shares nothing with the
// original.
func UnshareMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return Refused("unshare", "the mount namespace", err, unix.CAP_SYS_ADMIN)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make a copy of the mounts private: %w", err)
	}
	return nil
}

// Refused explains why a call failed: the capabilities that the calling thread lacks, if any of those it needs, else,
// for EPERM and EACCES, that a security module must be at work. Those errors match [ErrRefused].
func Refused(call, target string, err error, needs ...int) error {
	err = fmt.Errorf("%s %s: %w", call, target, err)
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return err
	}
	if missing := missingCaps(needs); len(missing) > 0 {
		return fmt.Errorf("%w: %w: this process lacks %s (run the container privileged, or add it)", ErrRefused, err, strings.Join(missing, " and "))
	}
	return fmt.Errorf("%w: %w: the capabilities are there, so a security module (SELinux, AppArmor, seccomp) refuses it: see the audit log", ErrRefused, err)
}

var capNames = map[int]string{
	unix.CAP_SYS_CHROOT: "CAP_SYS_CHROOT", unix.CAP_SYS_PTRACE: "CAP_SYS_PTRACE", unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN",
	unix.CAP_NET_ADMIN: "CAP_NET_ADMIN",
}

// missingCaps names those capabilities that the calling thread lacks.
func missingCaps(caps []int) []string {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return nil
	}
	var names []string
	for _, c := range caps {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			names = append(names, capNames[c])
		}
	}
	return names
}
