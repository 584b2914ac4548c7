package mounts

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/mounts/ns"
)

// SelfIn reports whether this process is in the cgroup v2 directory at path or
// below it.
//
// The kernel says where a process is only as a path (/proc/PID/cgroup) relative
// to the root of the reader's cgroup namespace, and of a mount which cgroup it
// shows only in the same way. Where the two can be brought together we go to the
// process's directory and upwards, comparing ids. Where they can't, also not
// from pid 1's cgroup namespace, sure is false and in too.
func SelfIn(path string) (in, sure bool, err error) { return contains(path, "self") }

// ProcessIn is SelfIn for another process, which our /proc shows.
func ProcessIn(path string, pid int) (in, sure bool, err error) {
	return contains(path, strconv.Itoa(pid))
}

// OwnCgroups returns those directories among the cgroup v2 directory at path and
// the ones below it where a program that is attached sees this process: its own
// cgroup, where that has a path that is known (as for SelfIn), then path itself.
// There are none if this process is surely elsewhere.
func OwnCgroups(path string) (dirs []string, err error) {
	l, err := locate(path, "self", func(l location) bool { return l.dir != "" || l.sure && !l.in })
	if err != nil || l.sure && !l.in {
		return nil, err
	}
	if l.dir != "" && l.dir != filepath.Clean(path) {
		dirs = append(dirs, l.dir)
	}
	return append(dirs, path), nil
}

// contains is SelfIn for any process that our /proc shows.
func contains(dir, process string) (in, sure bool, err error) {
	if id, err := CgroupID(dir); err != nil || IsTopCgroup(id) {
		return err == nil, err == nil, err // all are below the top
	}
	l, err := locate(dir, process, func(l location) bool { return l.sure })
	return l.in, l.sure, err
}

// location says whether a process is in a cgroup or below it.
type location struct {
	in, sure bool
	dir      string // of the process's own cgroup, where it is in and that has a path; else ""
}

// locate looks where a process is, as seen from dir, until that is known enough.
func locate(dir, process string, enough func(location) bool) (location, error) {
	fd, err := ownView().openDir(dir)
	if err != nil {
		return location{}, err
	}
	defer unix.Close(fd)
	want, err := cgroupID(fd, dir)
	if err != nil {
		return location{}, err
	}
	l, err := locateHere(ownView(), fd, want, process)
	if enough(l) || err != nil {
		return l, err
	}
	h, err := FindHost(Config{})
	if err != nil || h.entry == "" {
		return l, nil
	}
	// A path through /proc/1/root is on a mount that only pid 1's table has.
	if !h.own {
		l, err = locateHere(h.view(), fd, want, process)
		if enough(l) || err != nil || h.ownCgroup {
			return l, err
		}
	}
	// The same look from pid 1's cgroup namespace. That it may be refused is
	// only another reason not to be sure.
	entry, err := os.Open(h.entry)
	if err != nil {
		return l, nil
	}
	defer entry.Close()
	err = ns.Do(func() error {
		if err := ns.EnterOf(entry, unix.CLONE_NEWCGROUP); err != nil {
			return err
		}
		for _, v := range []view{ownView(), h.view()} {
			var err error
			if l, err = locateHere(v, fd, want, process); enough(l) || err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return location{}, nil
	}
	return l, nil
}

// locateHere looks from the cgroup namespace of the calling thread, for a
// directory that is on a mount of v.
func locateHere(v view, fd int, want uint64, process string) (location, error) {
	data, err := os.ReadFile("/proc/" + process + "/cgroup")
	if err != nil {
		return location{}, fmt.Errorf("read the cgroup of process %s: %w", process, err)
	}
	rel, ok := cgroup2Path(string(data))
	if !ok {
		return location{}, nil
	}
	table, err := v.mounts(typeIs("cgroup2"))
	if err != nil {
		return location{}, err
	}
	m, ok := byID(table, hostfs.MountID(fd))
	if !ok {
		return location{}, nil
	}
	point := v.open(strings.TrimPrefix(m.Point, v.inTable))
	at, where := position(m.Root, rel)
	switch where {
	case outside:
		return location{sure: true}, nil
	case inUnnamedSubtree:
		id, err := CgroupID(point)
		root := err == nil && id == want
		return location{in: root, sure: root}, nil
	}
	dir := path.Join(point, at)
	l := location{dir: dir}
	if l.in, l.sure, err = hasAncestor(dir, m.ID, want); !l.in {
		l.dir = ""
	}
	return l, err
}

// hasAncestor goes from a directory upwards to the root of its mount.
func hasAncestor(dir string, mount int, want uint64) (in, sure bool, err error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, false, nil // it moved, or the mount point is hidden
	}
	defer func() { unix.Close(fd) }()
	if hostfs.MountID(fd) != mount {
		return false, false, nil
	}
	for hostfs.MountID(fd) == mount {
		id, err := cgroupID(fd, dir)
		if err != nil {
			return false, false, err
		}
		if id == want {
			return true, true, nil
		}
		up, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return false, false, &os.PathError{Op: "open", Path: dir + "/..", Err: err}
		}
		unix.Close(fd)
		fd = up
	}
	return false, true, nil
}

// cgroup2Path finds the v2 line in a /proc/PID/cgroup. A process in a cgroup
// that has been removed has no place any more.
func cgroup2Path(data string) (string, bool) {
	for line := range strings.Lines(data) {
		p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if ok {
			return p, strings.HasPrefix(p, "/") && !strings.HasSuffix(p, " (deleted)")
		}
	}
	return "", false
}

type place int

const (
	outside          place = iota
	inSubtree              // at a known path
	inUnnamedSubtree       // at a path that is not known
)

// position says where the cgroup rel is as seen from the cgroup root, both
// relative to the same cgroup namespace. A path of the kernel's begins with one
// "/.." for each step from the namespace's root up to the nearest ancestor that
// both have in common, so what is further up has no name.
func position(root, rel string) (string, place) {
	root = strings.TrimSuffix(root, "/")
	rest, ok := strings.CutPrefix(rel+"/", root+"/")
	switch {
	case ok && !strings.HasPrefix(rest, "../"):
		return strings.Trim(rest, "/"), inSubtree
	case !ok && root == strings.Repeat("/..", len(root)/3):
		return "", inUnnamedSubtree
	}
	return "", outside
}
