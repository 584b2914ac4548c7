package natinit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another firsthop held a lock for too long.
var ErrLocked = errors.New("another firsthop is at work")

// TableLock is the lock of a table while it is held.
type TableLock struct{ f *os.File }

// LockTable waits for the lock of the bpffs that holds a table, beside the one
// of the run directory: two instances that share a table although their run
// directories differ (an init container without the host's /run) must not write
// it at once. It is to be released before the bpffs is unmounted.
func LockTable(ctx context.Context, bpffs string) (*TableLock, error) {
	f, err := os.Open(bpffs)
	if err != nil {
		return nil, fmt.Errorf("lock bpffs: %w", err)
	}
	l := &TableLock{f: f}
	for wait := time.Millisecond; ; wait = min(wait*2, 20*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock bpffs %s: %w", bpffs, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for the lock of bpffs %s: %w: another instance with another run directory uses the same bpffs", bpffs, ErrLocked)
		case <-time.After(wait):
		}
	}
}

// Release gives the lock to the next.
func (l *TableLock) Release() error {
	if err := l.f.Close(); err != nil {
		return fmt.Errorf("release lock of the table: %w", err)
	}
	return nil
}

// The runtime's files in the run directory.
const (
	// RuntimeLockName is locked (flock) by a runtime for as long as it lives, and says its pid.
	RuntimeLockName = "runtime.lock"
	// RuntimeSocketName is where a runtime answers the command line.
	RuntimeSocketName = "runtime.sock"
)

// ErrRuntime says that an instance has a runtime at work.
var ErrRuntime = errors.New("a runtime is at work here")

// LockRuntime makes the caller the one runtime of the instance with this run
// directory, until it calls unlock or ends. The error matches ErrRuntime where
// there is one already.
func LockRuntime(runDir string) (unlock func(), err error) {
	path := filepath.Join(runDir, RuntimeLockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the runtime's lock: %w", err)
	}
	if err := tryRuntime(f); err != nil {
		f.Close()
		return nil, err
	}
	if err := f.Truncate(0); err == nil { // who holds it is a help, no more
		fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return func() { f.Close() }, nil
}

// RuntimeAbsent reports by an error that matches ErrRuntime that an instance has
// a runtime.
func RuntimeAbsent(runDir string) error {
	f, err := os.Open(filepath.Join(runDir, RuntimeLockName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for a runtime: %w", err)
	}
	defer f.Close()
	return tryRuntime(f)
}

func tryRuntime(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	pid, _ := os.ReadFile(f.Name())
	return fmt.Errorf("%s is held by pid %s: %w", f.Name(), strings.TrimSpace(string(pid)), ErrRuntime)
}
