package instance

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

// maxFile bounds what is read of a file. The largest one is a report with every Service of init's.
const maxFile = 16 << 20

// Dir is a directory that is held open. Everything is done relative to it, so that nobody can exchange it meanwhile.
type Dir struct {
	Path  string
	Trust Trust
	f     *os.File
}

// Open opens a directory. Links on the way are followed; see the package's comment.
func Open(path string) (*Dir, error) {
	fd, trust, err := walk(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	real, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &Dir{Path: path, Trust: trust, f: os.NewFile(uintptr(real), path)}, nil
}

// Close closes the directory; locks in it stay held.
func (d *Dir) Close() error { return d.f.Close() }

// Fd is the directory's descriptor, valid until it is closed.
func (d *Dir) Fd() int { return int(d.f.Fd()) }

func (d *Dir) at(name string) string { return filepath.Join(d.Path, name) }

// ErrNotRegular says that something else than a regular file is in the place of one of ours.
var ErrNotRegular = errors.New("not a regular file")

// ErrTooLarge says that a file is larger than any of ours.
var ErrTooLarge = errors.New("larger")

// openFile opens a file in the directory, never through a link and never waiting for anybody. It returns what it is,
// too; anything but a regular file is an error.
func (d *Dir) openFile(name string, flags int, mode uint32) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := unix.Openat(d.Fd(), name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, mode)
	if errors.Is(err, unix.ELOOP) {
		return nil, st, fmt.Errorf("%s is %w but a symbolic link, which is not followed: remove it", d.at(name), ErrNotRegular)
	}
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENXIO) {
		return nil, st, fmt.Errorf("%s is %w: move it away", d.at(name), ErrNotRegular)
	}
	if err != nil {
		return nil, st, &fs.PathError{Op: "open", Path: d.at(name), Err: err}
	}
	f := os.NewFile(uintptr(fd), d.at(name))
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, st, &fs.PathError{Op: "stat", Path: d.at(name), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, st, fmt.Errorf("%s is %w: move it away", d.at(name), ErrNotRegular)
	}
	return f, st, nil
}

// Read reads a file of ours, and believes it only if nobody but root can have written it: else the error matches
// ErrUntrusted. A missing one matches fs.ErrNotExist, no matter who owns the directory.
func (d *Dir) Read(name string) ([]byte, error) {
	f, st, err := d.openFile(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := d.Trust.Err(); err != nil {
		return nil, fmt.Errorf("ignored %s: %w", d.at(name), err)
	}
	if ours(st.Uid) {
		st.Uid = 0
	}
	if why := hostfs.Judge(int(f.Fd()), &st); why != "" {
		return nil, &hostfs.UntrustedError{Path: d.at(name), At: d.at(name), Why: why}
	}
	if st.Size > maxFile {
		return nil, fmt.Errorf("%s is %w than %d bytes: move it away", d.at(name), ErrTooLarge, maxFile)
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// ReadFile is Dir.Read of a file's directory.
func ReadFile(path string) ([]byte, error) {
	d, err := Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Read(filepath.Base(path))
}

// Rename moves a file within the directory.
func (d *Dir) Rename(from, to string) error {
	if err := unix.Renameat(d.Fd(), from, d.Fd(), to); err != nil {
		return &os.LinkError{Op: "rename", Old: d.at(from), New: d.at(to), Err: err}
	}
	return nil
}

// Remove removes a file, or a link itself; one that is not there is no error.
func (d *Dir) Remove(name string) error {
	if err := unix.Unlinkat(d.Fd(), name, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "remove", Path: d.at(name), Err: err}
	}
	return nil
}

// Sync makes a rename or a removal survive a loss of power.
func (d *Dir) Sync() error {
	// Some file systems can't sync a directory, and say EINVAL.
	if err := d.f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// Missing lists those of a directory and its parents that are not there, the topmost first.
func Missing(dir string) []string {
	var out []string
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			slices.Reverse(out)
			return out
		}
		out = append(out, dir)
	}
}

// Make makes directories, the topmost first, with exactly the mode, whatever the umask. The mode is the last one's: its
// parents may come to hold things of others, and get 0755. One that is there already keeps its mode.
func Make(dirs []string, mode fs.FileMode) error {
	for i, dir := range dirs {
		m := fs.FileMode(0o755)
		if i == len(dirs)-1 {
			m = mode
		}
		if err := makeOne(dir, m); err != nil {
			return err
		}
	}
	return nil
}

func makeOne(dir string, mode fs.FileMode) error {
	parent, _, err := walk(filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	name := filepath.Base(dir)
	err = unix.Mkdirat(parent, name, uint32(mode.Perm()))
	var st unix.Stat_t
	if errors.Is(err, fs.ErrExist) {
		fd, _, err := walk(dir) // a file, or a link that leads nowhere?
		if err == nil {
			unix.Close(fd)
		}
		if errors.Is(err, fs.ErrNotExist) && unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			// No other process is about to make it, so it is not to be waited for. The link may be of a disk that is not mounted yet.
			return fmt.Errorf("mkdir %s: %v: create what the link leads to, or remove the link", dir, err)
		}
		return err
	}
	if errors.Is(err, fs.ErrNotExist) && unix.Fstat(parent, &st) == nil && st.Nlink > 0 {
		// Not a parent that was removed meanwhile, but a file system such as proc: it would never work.
		return fmt.Errorf("mkdir %s: no directory can be made on that file system", dir)
	}
	if err != nil {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Fchmod(fd, uint32(mode.Perm())); err != nil {
		return &fs.PathError{Op: "chmod", Path: dir, Err: err}
	}
	return nil
}

// tempPrefix begins the names of the files that are to take a file's place.
func tempPrefix(name string) string { return "." + name + "." }

// Leftovers are the temporary files that killed runs left of the named files in a directory: with the instance's lock
// nobody else writes there.
func Leftovers(dir string, names ...string) []string {
	entries, _ := os.ReadDir(dir) // no directory, nothing left over
	var out []string
	for _, e := range entries {
		if slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(e.Name(), tempPrefix(n)) }) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out
}
