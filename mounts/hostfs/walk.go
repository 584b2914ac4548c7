package hostfs

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is the kernel's own limit (MAXSYMLINKS).
const maxLinks = 40

// Visit judges a directory, a link or a file on the way to a path: the root first, then whatever the path leads
// through. at is its path, fd is open with O_PATH. An error ends the walk.
type Visit func(at string, fd int, st *unix.Stat_t) error

// OpenDir opens a directory (O_PATH) component by component, each shown to visit, and returns its real path too. Errors
// are *[fs.PathError]s that name the component which failed, and those of visit.
func (f FS) OpenDir(name string, visit Visit) (fd int, at string, err error) {
	w := &walk{visit: visit}
	defer w.close()
	if err := w.from(f, name); err != nil {
		return -1, "", err
	}
	if w.st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return -1, "", &fs.PathError{Op: "open directory", Path: w.at(), Err: unix.ENOTDIR}
	}
	if fd, err = unix.FcntlInt(uintptr(w.fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return -1, "", &fs.PathError{Op: "dup", Path: w.at(), Err: err}
	}
	return fd, w.at(), nil
}

// Resolve returns the path, as the host sees it, that name leads to, with every link on the way followed. What does not
// exist is kept as it is: then there is a path beside the error, which says ENOENT, or ENOTDIR below a file.
func (f FS) Resolve(name string) (string, error) {
	w := &walk{resolve: true}
	defer w.close()
	if err := w.from(f, name); err != nil {
		return "", explain(name, err)
	}
	at := path.Join(w.at(), path.Join(w.missing...))
	if w.cause != nil {
		return at, explain(name, w.cause)
	}
	return at, nil
}

// OnProc reports whether a file is on a proc file system, where only the kernel can follow a link such as
// /proc/PID/root.
func OnProc(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// walk is a way from the root to a file: every directory on it is held open.
type walk struct {
	above string // path of the first of dirs: "/", or a link of proc
	visit Visit
	dirs  []int // from the root down; ".." goes back
	names []string
	fd    int // what the way ends at, O_PATH; the last of dirs if it is a directory
	st    unix.Stat_t

	resolve bool     // a path that does not exist is no error
	missing []string // the components of it that do not exist
	cause   error    // why the first of them does not

	links    int
	link     string // the last link that was followed, for messages
	target   string
	linkRest int // how much of the path remains after it
}

// walk goes from Root to a path as the kernel would with Root for "/".
func (f FS) walk(name string, visit Visit) (*walk, error) {
	w := &walk{visit: visit}
	if err := w.from(f, name); err != nil {
		w.close()
		return nil, explain(name, err)
	}
	return w, nil
}

func (w *walk) from(f FS, name string) error {
	w.above, w.fd = "/", -1
	root, err := unix.Open(cmp.Or(f.Root, "/"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open root %s: %w", f.Root, err)
	}
	w.dirs, w.fd = []int{root}, root
	if err := w.stat(root); err != nil {
		return err
	}
	return w.follow(strings.Split(name, "/"))
}

func (w *walk) close() {
	for _, d := range w.dirs {
		unix.Close(d)
	}
	if w.fd >= 0 && !slices.Contains(w.dirs, w.fd) {
		unix.Close(w.fd)
	}
}

// at is the path of what the way has come to.
func (w *walk) at() string { return path.Join(w.above, strings.Join(w.names, "/")) }

func (w *walk) pathError(op string, err error) error {
	return &fs.PathError{Op: op, Path: w.at(), Err: err}
}

func (w *walk) follow(rest []string) error {
	for len(rest) > 0 {
		c := rest[0]
		rest = rest[1:]
		switch missing := len(w.missing); {
		case c == "" || c == ".":
			continue
		case c == ".." && missing > 0:
			w.missing = w.missing[:missing-1]
			continue
		case c == "..":
			w.up(len(w.dirs) - 1)
			continue
		case missing > 0:
			w.missing = append(w.missing, c)
			continue
		}
		fd, err := w.step(c, len(rest) > 0)
		if err == nil {
			rest, err = w.enter(c, fd, rest)
		}
		if err != nil && w.resolve && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)) {
			w.missing, w.cause = append(w.missing, c), cmp.Or(w.cause, err)
			continue
		}
		if errors.Is(err, fs.ErrNotExist) && w.link != "" && len(rest) >= w.linkRest {
			return fmt.Errorf("%s is a link to %s: %w", w.link, w.target, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// enter continues from what step has opened, and returns what remains of the path.
func (w *walk) enter(name string, fd int, rest []string) ([]string, error) {
	switch w.st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		defer unix.Close(fd)
		if jumped, err := w.jump(name, fd); jumped || err != nil {
			return rest, err
		}
		return w.followLink(name, fd, rest)
	case unix.S_IFDIR:
		w.dirs = append(w.dirs, fd)
	default:
		if strings.Join(rest, "") != "" {
			unix.Close(fd)
			return rest, &fs.PathError{Op: "open directory", Path: path.Join(w.at(), name), Err: unix.ENOTDIR}
		}
	}
	w.names, w.fd = append(w.names, name), fd
	return rest, nil
}

// up closes the directories below the first n, but never the root.
func (w *walk) up(n int) {
	n = max(n, 1)
	for _, d := range w.dirs[n:] {
		unix.Close(d)
	}
	w.dirs, w.names, w.fd = w.dirs[:n], w.names[:n-1], w.dirs[n-1]
}

// step opens an entry of the last directory and looks at it. O_DIRECTORY mounts what an automount would mount there.
func (w *walk) step(name string, more bool) (int, error) {
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	dir := w.dirs[len(w.dirs)-1]
	w.names = append(w.names, name)
	defer func() { w.names = w.names[:len(w.names)-1] }()
	fd, err := -1, error(unix.ENOTDIR)
	if more {
		fd, err = unix.Openat(dir, name, flags|unix.O_DIRECTORY, 0)
	}
	if err == unix.ENOTDIR {
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	if err != nil {
		return -1, w.pathError("open", err)
	}
	if err := w.stat(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// stat looks at what fd is, and has it judged.
func (w *walk) stat(fd int) error {
	if err := unix.Fstat(fd, &w.st); err != nil {
		return w.pathError("stat", err)
	}
	if w.visit == nil {
		return nil
	}
	return w.visit(w.at(), fd, &w.st)
}

// jump follows a link of proc to the root of a process. What is below has its root there. Other links of proc lead to
// places of a process's choice, and what is above those would not be judged.
func (w *walk) jump(name string, link int) (bool, error) {
	if name != "root" || !OnProc(link) {
		return false, nil
	}
	target, err := unix.Openat(w.dirs[len(w.dirs)-1], name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil { // its text would lead into our own root
		return false, &fs.PathError{Op: "open", Path: path.Join(w.at(), name), Err: err}
	}
	for _, d := range w.dirs {
		unix.Close(d)
	}
	w.above, w.names, w.dirs, w.fd = path.Join(w.at(), name), nil, []int{target}, target
	return true, w.stat(target)
}

// followLink returns what remains of the path with the link's target before it.
func (w *walk) followLink(name string, fd int, rest []string) ([]string, error) {
	target, err := readlink(fd)
	at := path.Join(w.at(), name)
	if w.links++; err == nil && w.links > maxLinks {
		err = unix.ELOOP
	}
	if err != nil {
		return rest, &fs.PathError{Op: "open", Path: at, Err: err}
	}
	w.link, w.target, w.linkRest = at, target, len(rest)
	if path.IsAbs(target) {
		w.up(1)
	}
	return append(strings.Split(target, "/"), rest...), nil
}

// open opens the regular file that the way ends at. Others are not even opened: a FIFO hangs, and a watchdog starts.
func (w *walk) open(name string, flags int) (*os.File, error) {
	if w.st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	fd, err := unix.Openat(w.dirs[len(w.dirs)-1], w.names[len(w.names)-1], flags|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, w.pathError("open", err)
	}
	// It may be another file by now. What counts is what was opened.
	err = w.stat(fd)
	if err == nil && w.st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func readlink(fd int) (string, error) {
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(fd, "", buf[:])
	if err != nil {
		return "", err
	}
	if n == 0 {
		return "", unix.ENOENT
	}
	return string(buf[:n]), nil
}
