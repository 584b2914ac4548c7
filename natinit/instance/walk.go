package instance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many links are followed before they count as a loop, as in the kernel.
const maxLinks = 40

// walker opens a directory component by component and looks at each.
type walker struct {
	at    []int    // descriptors of the directories from the root to here
	names []string // their paths, for messages
	trust Trust
	links int
}

// walk returns a descriptor (O_PATH) of the directory at path, which must be absolute, and who else may change what
// that path leads to.
func walk(path string) (fd int, trust Trust, err error) {
	if !filepath.IsAbs(path) {
		return -1, Trust{}, fmt.Errorf("directory %q: want an absolute path", path)
	}
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, Trust{}, &fs.PathError{Op: "open", Path: "/", Err: err}
	}
	w := &walker{at: []int{root}, names: []string{"/"}}
	defer w.close()
	if err := w.judgeTop(); err != nil {
		return -1, Trust{}, err
	}
	if err := w.follow(path); err != nil {
		return -1, Trust{}, err
	}
	w.trust.finish(w.names[len(w.names)-1])
	fd, w.at = w.at[len(w.at)-1], w.at[:len(w.at)-1]
	return fd, w.trust, nil
}

func (w *walker) close() {
	for _, fd := range w.at {
		unix.Close(fd)
	}
}

// follow goes along a path, from the root if it is absolute.
func (w *walker) follow(path string) error {
	if filepath.IsAbs(path) {
		w.shorten(1)
	}
	for name := range strings.SplitSeq(path, "/") {
		var err error
		switch name {
		case "", ".":
		case "..":
			w.shorten(max(1, len(w.at)-1))
		default:
			err = w.enter(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) shorten(n int) {
	for _, fd := range w.at[n:] {
		unix.Close(fd)
	}
	w.at, w.names = w.at[:n], w.names[:n]
}

func (w *walker) enter(name string) error {
	dir, path := w.at[len(w.at)-1], filepath.Join(w.names[len(w.names)-1], name)
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		w.at, w.names = append(w.at, fd), append(w.names, path)
		return w.judgeTop()
	case unix.S_IFLNK:
		defer unix.Close(fd)
		return w.followLink(dir, fd, name, path, st.Uid)
	}
	unix.Close(fd)
	return &fs.PathError{Op: "open directory", Path: path, Err: unix.ENOTDIR}
}

func (w *walker) followLink(dir, fd int, name, path string, uid uint32) error {
	if w.links++; w.links > maxLinks {
		return &fs.PathError{Op: "open", Path: path, Err: unix.ELOOP}
	}
	var sfs unix.Statfs_t
	if unix.Fstatfs(fd, &sfs) == nil && sfs.Type == unix.PROC_SUPER_MAGIC {
		// /proc/PID/root: only the kernel can follow it, and what is below has its root there.
		target, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: path, Err: err}
		}
		w.shorten(0)
		w.trust = Trust{} // the way to a process does not lead through directories that anybody could exchange
		w.at, w.names = append(w.at, target), append(w.names, path)
		return w.judgeTop()
	}
	if !ours(uid) {
		return fmt.Errorf("%s is a link that belongs to user %d and is not followed: %w", path, uid, ErrUntrusted)
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return &fs.PathError{Op: "readlink", Path: path, Err: err}
	}
	if err := w.follow(string(buf[:n])); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is a link to %s: %w", path, buf[:n], err)
		}
		return err
	}
	return nil
}

// judgeTop looks at who may change the directory that the walk has come to.
func (w *walker) judgeTop() error {
	path := w.names[len(w.names)-1]
	var st unix.Stat_t
	if err := unix.Fstat(w.at[len(w.at)-1], &st); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	w.trust.judge(path, w.at[len(w.at)-1], st)
	return nil
}

// ours reports whether a file's owner is root, or who runs this.
func ours(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() }
