package mounts

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/hostfs"
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
