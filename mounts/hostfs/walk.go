package hostfs

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is the kernel's own limit (MAXSYMLINKS).
const maxLinks = 40

// walk is a way from the root to a file: every directory on it is held open.
type walk struct {
	name    string // as it was asked for, to be shown
	above   string // FS.shown
	trusted bool   // check every step
	dirs    []int  // from the root down; ".." goes back
	names   []string
	links   int
	fd      int // what the way ends at, O_PATH; the last of dirs if it is a directory
	st      unix.Stat_t
}

// walk goes from Root to a path as the kernel would with Root for "/".
func (f FS) walk(name string, trusted bool) (*walk, error) {
	w := &walk{name: name, above: f.shown, trusted: trusted, fd: -1}
	if f.shown != "" {
		w.name = path.Join(f.shown, name)
	}
	root, err := unix.Open(cmp.Or(f.Root, "/"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", f.Root, err)
	}
	w.dirs, w.fd = []int{root}, root
	if err := w.stat(root); err != nil {
		w.close()
		return nil, err
	}
	if err := w.follow(strings.Split(name, "/")); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *walk) close() {
	for _, d := range w.dirs {
		unix.Close(d)
	}
	if w.fd >= 0 && !slices.Contains(w.dirs, w.fd) {
		unix.Close(w.fd)
	}
}

func (w *walk) follow(rest []string) error {
	for len(rest) > 0 {
		c := rest[0]
		rest = rest[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			w.up(len(w.dirs) - 1)
			continue
		}
		fd, err := w.step(c, len(rest) > 0)
		if err != nil {
			return err
		}
		switch w.st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, err := readlink(fd)
			unix.Close(fd)
			if w.links++; err == nil && w.links > maxLinks {
				err = unix.ELOOP
			}
			if err != nil {
				return plainPathError(w.name, err)
			}
			if path.IsAbs(target) {
				w.up(1)
			}
			rest = append(strings.Split(target, "/"), rest...)
		case unix.S_IFDIR:
			w.dirs, w.names, w.fd = append(w.dirs, fd), append(w.names, c), fd
		default:
			w.names, w.fd = append(w.names, c), fd
			if strings.Join(rest, "") != "" {
				return plainPathError(w.name, unix.ENOTDIR)
			}
			return nil
		}
	}
	return nil
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
		return -1, plainPathError(w.name, err)
	}
	if err := w.stat(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// stat looks at what fd is, and judges it where only trusted files count.
func (w *walk) stat(fd int) error {
	if err := unix.Fstat(fd, &w.st); err != nil {
		return plainPathError(w.name, err)
	}
	if !w.trusted {
		return nil
	}
	if why := Judge(fd, &w.st); why != "" {
		return &UntrustedError{Path: w.name, At: path.Join("/", w.above, strings.Join(w.names, "/")), Why: why}
	}
	return nil
}

// open opens the regular file that the way ends at. Others are not even opened: a FIFO hangs, and a watchdog starts.
func (w *walk) open(flags int) (*os.File, error) {
	if w.st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is not a regular file", w.name)
	}
	fd, err := unix.Openat(w.dirs[len(w.dirs)-1], w.names[len(w.names)-1], flags|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, plainPathError(w.name, err)
	}
	// It may be another file by now. What counts is what was opened.
	if err := w.stat(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if w.st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, fmt.Errorf("%s is not a regular file", w.name)
	}
	return os.NewFile(uintptr(fd), w.name), nil
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
