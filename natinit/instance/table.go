package instance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Hold is a runtime's claim to a table: its directory on the bpffs, open and locked (flock) for as long as the runtime
// lives. Two runtimes with run directories of their own notice each other by it. It also keeps a bpffs alive that is
// unmounted lazily, with all that is pinned there.
type Hold struct{ f *os.File }

// HoldTable claims the table in a directory. Its error matches ErrRuntime where another runtime has it.
func HoldTable(dir string) (*Hold, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the table's directory: %w", &fs.PathError{Op: "open", Path: dir, Err: err})
	}
	h := &Hold{f: os.NewFile(uintptr(fd), dir)}
	free, err := flock(h.f)
	if err == nil && free {
		return h, nil
	}
	defer h.f.Close()
	if err != nil {
		return nil, fmt.Errorf("lock the table's directory: %w", err)
	}
	return nil, fmt.Errorf("the table at %s is served by %s: %w", dir, holdersOf(h.f), ErrRuntime)
}

// TableFree reports by an error that matches ErrRuntime that a runtime has the table in a directory.
func TableFree(dir string) error {
	h, err := HoldTable(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return h.Release()
}

// Root is a path by which this process reaches the root of the bpffs that is held, mounted or not.
func (h *Hold) Root() string { return fmt.Sprintf("/proc/self/fd/%d/..", h.f.Fd()) }

// Dir is a path by which this process reaches the directory, mounted or not.
func (h *Hold) Dir() string { return fmt.Sprintf("/proc/self/fd/%d", h.f.Fd()) }

// IsAt reports whether a path leads to the directory that is held.
func (h *Hold) IsAt(dir string) bool {
	var held, there unix.Stat_t
	if unix.Fstat(int(h.f.Fd()), &held) != nil || unix.Lstat(dir, &there) != nil {
		return false
	}
	return held.Dev == there.Dev && held.Ino == there.Ino
}

// Release gives the claim up.
func (h *Hold) Release() error { return h.f.Close() }
