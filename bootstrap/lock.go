package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/natinit"
)

// ErrLocked says that another firsthop held the lock for too long.
var ErrLocked = natinit.ErrLocked

// LockName is the file in the run directory whose flock every entry point
// takes before it changes anything. The kernel releases it when its holder
// dies, however it dies.
const LockName = "lock"

// Lock is the instance's lock while it is held.
type Lock struct {
	Waited time.Duration // for another to release it; 0 if it was free
	f      *os.File
}

// AcquireLock waits for the lock of the instance with this run directory, which
// must exist, until ctx ends. The error then matches ErrLocked and names the
// holder.
func AcquireLock(ctx context.Context, runDir string) (*Lock, error) {
	path := filepath.Join(runDir, LockName)
	start := time.Now()
	for wait := time.Millisecond; ; wait = min(wait*2, 20*time.Millisecond) {
		l, err := tryLock(path)
		if l != nil && wait > time.Millisecond {
			l.Waited = time.Since(start)
		}
		if err != nil || l != nil {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s, held by %s: %w: wait for it, or look at what it hangs on", path, holder(path), ErrLocked)
		case <-time.After(wait):
		}
	}
}

// lockRunDir takes the lock in a run directory, which it makes where it isn't
// there: made are the directories that are to be noted. An uninstall that ends
// may take the directory away meanwhile.
func lockRunDir(ctx context.Context, runDir string) (l *Lock, made []string, err error) {
	for {
		made = missingDirs(runDir)
		if err = makeDirs(made, 0o755); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, nil, fmt.Errorf("create run directory: %w: %s", err, adviceFor(err, "--run-dir"))
		}
		l, err = AcquireLock(ctx, runDir)
		if !errors.Is(err, os.ErrNotExist) || ctx.Err() != nil {
			return l, made, err
		}
	}
}

// tryLock gives nil without an error while another holds the lock. The file
// that it locked must still be the one at path: uninstall removes it.
func tryLock(path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EROFS) {
		return nil, fmt.Errorf("open lock: %w: %s", err, adviceFor(err, "--run-dir"))
	}
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			return nil, nil
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	var held, there unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &held), unix.Stat(path, &there)); err != nil || held.Ino != there.Ino || held.Dev != there.Dev {
		f.Close()
		return nil, nil
	}
	if err := f.Truncate(0); err == nil { // who holds it is a help, no more
		fmt.Fprintf(f, "%d %s\n", os.Getpid(), strings.Join(os.Args[:min(2, len(os.Args))], " "))
	}
	return &Lock{f: f}, nil
}

func holder(path string) string {
	text, err := os.ReadFile(path)
	pid, command, ok := strings.Cut(strings.TrimSpace(string(text)), " ")
	if err != nil || !ok {
		return "an unknown process"
	}
	return fmt.Sprintf("pid %s (%s)", pid, command)
}

// Release gives the lock to the next.
func (l *Lock) Release() error {
	if err := l.f.Close(); err != nil {
		return fmt.Errorf("release lock: %w", err)
	}
	return nil
}
