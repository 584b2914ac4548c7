package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// ErrRefused says that the kernel doesn't let us find or enter a namespace. The
// error names the capability that is missing.
var ErrRefused = errors.New("refused by the kernel")

// Visit calls fn in each of the namespaces, one after the other, until fn
// returns false or the context ends. Those that are gone by then are passed over.
//
// fn runs on a thread that is in the namespace and ends after the visit. What
// it opens there (sockets, not names) stays there; goroutines that it starts
// are not there. The error tells of namespaces that could not be entered; all
// others have been visited then.
func (c Config) Visit(ctx context.Context, list []Namespace, fn func(Namespace) (more bool)) error {
	if len(list) == 0 {
		return ctx.Err()
	}
	return onThread(func() error {
		var refused []error
		for _, ns := range list {
			if err := ctx.Err(); err != nil {
				return err
			}
			err := c.enter(ns)
			if gone(err) {
				continue
			}
			if err != nil {
				refused = append(refused, err)
				continue
			}
			if !fn(ns) {
				break
			}
		}
		if len(refused) > 0 { // all for the same reason, as a rule
			return fmt.Errorf("enter network namespaces: %d of %d failed, the first: %w", len(refused), len(list), refused[0])
		}
		return nil
	})
}

// gone tells whether the error is that of a namespace which has ended, or of a
// name in a directory of network namespaces that is another kind's.
func gone(err error) bool {
	return slices.ContainsFunc([]error{fs.ErrNotExist, unix.ESRCH, unix.EINVAL}, func(e error) bool { return errors.Is(err, e) })
}

func (c Config) enter(ns Namespace) error {
	name := fmt.Sprintf("net:[%d]", ns.Inode)
	fd, err := c.open(ns)
	if err != nil {
		return explain("open", name, err, unix.CAP_SYS_PTRACE)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return explain("enter", name, err, unix.CAP_SYS_ADMIN)
	}
	return nil
}

// onThread runs fn on a thread that ends afterwards, so fn may leave it in any
// namespace: a goroutine that returns while it is locked takes its thread with
// it. The main thread is the exception, it is only parked, and /proc/self shows
// its namespaces as the process's; fn never runs there.
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
		defer close(errs) // also when fn ends the goroutine, as a test's does
		errs <- fn()
	}()
	return <-errs
}

func explain(call, target string, err error, needs int) error {
	err = fmt.Errorf("%s %s: %w", call, target, err)
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return err
	}
	name := map[int]string{unix.CAP_SYS_PTRACE: "CAP_SYS_PTRACE", unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN"}[needs]
	return fmt.Errorf("%w: %w: this process needs %s, and no security module in its way", ErrRefused, err, name)
}
