// Package ns runs functions in other namespaces.
//
// setns and unshare change one thread, and Go moves goroutines between threads. So everything of that kind runs by [Do],
// on a thread that ends with the work: none that other goroutines use is ever elsewhere, whatever fails.
package ns

import (
	"fmt"
	"os"
	"runtime"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
)

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
		return privileges.Refused("open", process.Name()+"/"+name, err, unix.CAP_SYS_PTRACE)
	}
	defer unix.Close(fd)
	return Enter(fd, process.Name()+"/"+name, kind)
}

// Enter is EnterOf for the file of a namespace.
func Enter(fd int, name string, kind int) error {
	needs := []capability.Cap{unix.CAP_SYS_ADMIN}
	if kind == unix.CLONE_NEWNS {
		needs = append(needs, unix.CAP_SYS_CHROOT)
		// The kernel refuses it while root and working directory are shared with other threads, who must not see a
		// change of them.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare the thread's file system state: %w", err)
		}
	}
	if err := unix.Setns(fd, kind); err != nil {
		return privileges.Refused("setns", name, err, needs...)
	}
	return nil
}

// UnshareMounts gives the calling thread, which must be one of [Do], a copy of its mounts that shares nothing with the
// original.
func UnshareMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return privileges.Refused("unshare", "the mount namespace", err, unix.CAP_SYS_ADMIN)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make a copy of the mounts private: %w", err)
	}
	return nil
}
