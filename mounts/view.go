package mounts

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/mounts/ns"
)

// view is one mount namespace seen from one place.
type view struct {
	// prefix comes before every path that we open: "" in our own root,
	// "/proc/1/root", or a Config.Root.
	prefix string
	// inTable comes before a path when it is looked for in the mount table: a
	// Config.Root in our own namespace, else "".
	inTable string
	// table opens the mount table that belongs to the paths.
	table func() (*os.File, error)
}

// ownView is the mount namespace and root of the calling thread.
func ownView() view {
	// Not /proc/self: that is the main thread's namespace.
	return view{table: tableOf("/proc/thread-self")}
}

// tableOf opens the mount table of a process, relative to its root.
func tableOf(process string) func() (*os.File, error) {
	return func() (*os.File, error) { return os.Open(process + "/mountinfo") }
}

func (v view) open(path string) string { return v.prefix + path }

func (v view) mounts(keep func([]byte) bool) ([]Mount, error) {
	f, err := v.table()
	if err != nil {
		return nil, fmt.Errorf("open the mount table: %w", err)
	}
	defer f.Close()
	return readTable(f, keep)
}

// resolve follows the symbolic links of p inside the view: an absolute link
// below /proc/1/root would otherwise lead into our own root. It returns the
// path without the prefix. (A link changed while we look gives a path that the
// later steps judge like any other.)
func (v view) resolve(p string) (string, error) { return hostfs.FS{Root: v.prefix}.Resolve(p) }

// openDir opens a directory to look at it. The caller closes it.
func (v view) openDir(p string) (int, error) {
	fd, err := unix.Open(v.open(p), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: v.open(p), Err: err}
	}
	return fd, nil
}

// stackOf returns the mounts that lie on one another at a path, the topmost
// first, and all that its mount table has there.
func (v view) stackOf(p string) (stack, all []Mount, err error) {
	fd, err := v.openDir(p)
	if err != nil {
		return nil, nil, err
	}
	id := hostfs.MountID(fd)
	unix.Close(fd)
	point := v.inTable + p
	if all, err = v.mounts(mountPointIs(point)); err != nil {
		return nil, nil, err
	}
	stack, _ = stackAt(all, point, id)
	return stack, all, nil
}

// entries lists a directory, at most limit names, without those that the
// kernel itself puts on a fresh bpffs (bpf_preload: maps.debug, progs.debug).
func entries(dir string, limit int) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	kept := names[:0]
	for _, n := range names {
		if n != "maps.debug" && n != "progs.debug" && len(kept) < limit {
			kept = append(kept, n)
		}
	}
	return kept, nil
}

// inHost runs fn in the mount namespace of h, and with cgroup in the cgroup
// namespace of h's first process too. fn gets the view from there. When we are
// in these already it runs in place, else as inHostThread does.
func (h *Host) inHost(cgroup bool, fn func(view) error) error {
	if h.entry == "" || (h.own && (!cgroup || h.ownCgroup)) {
		runtime.LockOSThread() // for /proc/thread-self
		defer runtime.UnlockOSThread()
		return fn(h.view())
	}
	return h.inHostThread(cgroup, fn)
}

// inHostThread is inHost, always on a thread of its own that fn may leave in any
// namespace. (A goroutine that fn starts is elsewhere: Go makes its threads
// from one that never left the process's namespaces.)
func (h *Host) inHostThread(cgroup bool, fn func(view) error) error {
	v := h.view()
	if h.entry == "" {
		return ns.Do(func() error { return fn(v) })
	}
	// Opened before the first setns: afterwards /proc is another one.
	dir, err := os.Open(h.entry)
	if err != nil {
		return fmt.Errorf("open %s: %w", h.entry, err)
	}
	defer dir.Close()
	return ns.Do(func() error {
		if cgroup && !h.ownCgroup {
			if err := ns.EnterOf(dir, unix.CLONE_NEWCGROUP); err != nil {
				return err
			}
		}
		if !h.own {
			if err := ns.EnterOf(dir, unix.CLONE_NEWNS); err != nil {
				return err
			}
			// setns made the namespace's root ours; h's first process has the
			// same one unless it is chrooted, which an init is not.
			v = view{table: func() (*os.File, error) { return openAt(dir, "mountinfo") }}
		}
		return fn(v)
	})
}

func openAt(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), dir.Name()+"/"+name), nil
}
