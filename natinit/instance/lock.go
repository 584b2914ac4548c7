package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another firsthop held a lock for too long.
var ErrLocked = errors.New("another firsthop is at work")

// Lock is a lock while it is held.
type Lock struct {
	Waited time.Duration // for another to release it; 0 if it was free
	Trust  Trust         // of the directory that it is in
	// Ignored is a process of somebody else than root that has locked a directory, which does not count: see LockDir.
	Ignored string
	f       *os.File
}

// flock takes the lock of an open file, unless another has it.
func flock(f *os.File) (free bool, err error) {
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	return true, nil
}

// await calls try, which gives neither a lock nor an error while another holds the lock at path but says who, until ctx
// ends. The error then matches ErrLocked.
func await(ctx context.Context, path string, try func() (l *Lock, holder string, err error)) (*Lock, error) {
	start := time.Now()
	for wait := time.Millisecond; ; wait = min(wait*2, 20*time.Millisecond) {
		l, holder, err := try()
		if l != nil && wait > time.Millisecond {
			l.Waited = time.Since(start)
		}
		if err != nil || l != nil {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s, held by %s: %w: wait for it, or look at what it hangs on", path, holder, ErrLocked)
		case <-time.After(wait):
		}
	}
}

// Acquire waits for the lock of the instance with this run directory, which must exist, until ctx ends. The error then
// matches ErrLocked and names the holder.
func Acquire(ctx context.Context, runDir string) (*Lock, error) {
	return await(ctx, filepath.Join(runDir, LockName), func() (*Lock, string, error) { return tryLock(runDir) })
}

// tryLock is for await. The file that it locked must still be the one in the directory: uninstall removes it.
func tryLock(runDir string) (l *Lock, holder string, err error) {
	dir, err := Open(runDir)
	if err != nil {
		return nil, "", lockError(err)
	}
	defer dir.Close()
	f, err := dir.openLock(LockName, unix.O_RDWR|unix.O_CREAT)
	if err != nil {
		return nil, "", lockError(err)
	}
	if free, err := flock(f); err != nil || !free {
		defer f.Close()
		return nil, holderIn(f), err
	}
	var held, there unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &held), unix.Fstatat(dir.Fd(), LockName, &there, unix.AT_SYMLINK_NOFOLLOW)); err != nil ||
		held.Ino != there.Ino || held.Dev != there.Dev {
		f.Close()
		return nil, "a process that has just ended", nil
	}
	writeHolder(f, fmt.Sprintf("%d %s\n", os.Getpid(), strings.Join(os.Args[:min(2, len(os.Args))], " ")))
	return &Lock{f: f, Trust: dir.Trust}, "", nil
}

// lockError says what to do about a run directory in which no lock can be made.
func lockError(err error) error {
	return fmt.Errorf("open lock: %w", withAdvice(err, "--run-dir"))
}

// Advice says what to do about a directory that can't be written; "" if there is nothing general to say. flag is the
// flag that gives another one.
func Advice(err error, flag string) string {
	switch {
	case errors.Is(err, unix.EROFS):
		return "the file system is read-only, give one that isn't by " + flag
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return "free some space, or give another directory by " + flag
	case errors.Is(err, unix.ENOTDIR):
		return "a file is in the way of the directory, give another by " + flag
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() == 0:
		return "it is immutable (lsattr -d), refused by a security module, or on a file system where root has no rights (NFS with root_squash): give another directory by " + flag
	case errors.Is(err, fs.ErrPermission):
		return "run as root, or give " + flag
	}
	return ""
}

// openLock opens a file to be locked. Who else could lock it could keep everybody out, so it must be ours.
func (d *Dir) openLock(name string, flags int) (*os.File, error) {
	f, st, err := d.openFile(name, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if !ours(st.Uid) {
		f.Close()
		return nil, fmt.Errorf("%s is not ours, it belongs to uid %d: remove it, and look who may write %s", f.Name(), st.Uid, d.Path)
	}
	return f, nil
}

// writeHolder says in a lock who holds it, which is a help and no more: a file that has a second name is not written, as
// that may be anything of root's.
func writeHolder(f *os.File, text string) {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Nlink != 1 || f.Truncate(0) != nil {
		return
	}
	fmt.Fprint(f, text)
}

func holderIn(f *os.File) string {
	text, err := io.ReadAll(io.LimitReader(f, 4096))
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

// LockDir waits for the lock on a directory until ctx ends; the error then matches ErrLocked.
//
// Others than root may open a mount point, or a bpffs of mode 1777, and so lock it. A lock of theirs does not count: it
// would keep firsthop from starting for as long as they like. Lock.Ignored says whose it is. A lock of which /proc/locks
// does not say whose it is (a process of another pid namespace) counts.
func LockDir(ctx context.Context, dir string) (*Lock, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	seen := "" // twice: what was root's may have ended while it was looked at, and another of root's have it by now
	l, err := await(ctx, dir, func() (*Lock, string, error) {
		if free, err := flock(f); err != nil || free {
			return &Lock{f: f}, "", err
		}
		by := holdersOf(f)
		if by.others != "" && by.others == seen {
			return &Lock{f: f, Ignored: by.others}, "", nil
		}
		seen = by.others
		return nil, by.String(), nil
	})
	if err != nil {
		f.Close()
	}
	return l, err
}

// LockTable waits for the lock of the bpffs that holds a table, beside the one of the run directory: two instances that
// share a table although their run directories differ (an init container without the host's /run) must not write it at
// once. It is to be released before the bpffs is unmounted.
func LockTable(ctx context.Context, bpffs string) (*Lock, error) {
	l, err := LockDir(ctx, bpffs)
	if errors.Is(err, ErrLocked) {
		return nil, fmt.Errorf("%w: another instance with another run directory uses the same bpffs", err)
	}
	if err != nil {
		return nil, fmt.Errorf("lock bpffs: %w", err)
	}
	return l, nil
}

// ErrRuntime says that an instance has a runtime at work.
var ErrRuntime = errors.New("a runtime is at work here")

// LockRuntime makes the caller the one runtime of the instance with this run directory, until it calls unlock or ends.
// The error matches ErrRuntime where there is one already.
func LockRuntime(runDir string) (unlock func(), err error) {
	dir, err := Open(runDir)
	if err != nil {
		return nil, fmt.Errorf("open the runtime's lock: %w", err)
	}
	defer dir.Close()
	f, err := dir.openLock(RuntimeLockName, unix.O_RDWR|unix.O_CREAT)
	if err != nil {
		return nil, fmt.Errorf("open the runtime's lock: %w", err)
	}
	if err := tryRuntime(f); err != nil {
		f.Close()
		return nil, err
	}
	writeHolder(f, fmt.Sprintf("%d\n", os.Getpid()))
	return func() { f.Close() }, nil
}

// RuntimeAbsent reports by an error that matches ErrRuntime that an instance has a runtime. What is in the place of a
// runtime's lock and can't be one is not a runtime.
func RuntimeAbsent(runDir string) error {
	dir, err := Open(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for a runtime: %w", err)
	}
	defer dir.Close()
	f, st, err := dir.openFile(RuntimeLockName, unix.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotRegular) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for a runtime: %w", err)
	}
	defer f.Close()
	if !ours(st.Uid) {
		return nil
	}
	return tryRuntime(f)
}

func tryRuntime(f *os.File) error {
	free, err := flock(f)
	if err != nil || free {
		return err
	}
	pid, _ := io.ReadAll(io.LimitReader(f, 64))
	return fmt.Errorf("%s is held by pid %s: %w", f.Name(), strings.TrimSpace(string(pid)), ErrRuntime)
}

// MakeAndAcquire takes the lock in a run directory, which it makes where it is not there: made are the directories that
// are to be recorded. An uninstall that ends may take the directory away meanwhile.
func MakeAndAcquire(ctx context.Context, runDir string) (l *Lock, made []string, err error) {
	for {
		made = Missing(runDir)
		if err = Make(made, 0o755); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("create run directory: %w", withAdvice(err, "--run-dir"))
		}
		l, err = Acquire(ctx, runDir)
		if err != nil && !errors.Is(err, ErrLocked) {
			unmake(made)
		}
		if !errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
			return l, made, err
		}
	}
}

// unmake removes directories that were made in vain, where they are empty. What is no directory was not made.
func unmake(dirs []string) {
	for _, dir := range slices.Backward(dirs) {
		_ = unix.Rmdir(dir)
	}
}

func withAdvice(err error, flag string) error {
	if advice := Advice(err, flag); advice != "" {
		return fmt.Errorf("%w: %s", err, advice)
	}
	return err
}
