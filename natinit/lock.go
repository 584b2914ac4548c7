package natinit

import (
	"context"
	"errors"
	"fmt"
	"os"
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
