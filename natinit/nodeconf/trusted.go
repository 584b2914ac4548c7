package nodeconf

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

// Trusted are the files below root that only root may write: what starts the services of a node decides whom it
// believes. It is for one look at the node, which asks a dozen patterns, and hundreds of files most of which are not
// there, of a dozen directories of units: each directory is judged and listed once. For use by several goroutines.
func Trusted(root string) FS {
	return &trusted{FS: hostfs.FS{Root: root}, dirs: map[string]*directory{}}
}

type trusted struct {
	hostfs.FS
	mu   sync.Mutex
	dirs map[string]*directory // by path, with a slash at its end
}

// directory is one as it was when it was first asked for.
type directory struct {
	names []string // in lexical order
	err   error    // what CheckTrusted says
}

// lacks reports that a directory which only root may write has no such entry, or is not there itself.
func (d *directory) lacks(base string) bool {
	if d.err != nil {
		return errors.Is(d.err, fs.ErrNotExist)
	}
	_, there := slices.BinarySearch(d.names, base)
	return !there
}

func (t *trusted) dir(name string) *directory {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.look(name)
}

// look is dir, while mu is held.
func (t *trusted) look(name string) *directory {
	if d := t.dirs[name]; d != nil {
		return d
	}
	d := &directory{}
	t.dirs[name] = d
	above, base := path.Split(path.Clean(name))
	if above != name && base != "" && t.look(above).lacks(base) {
		d.err = fs.ErrNotExist
		return d
	}
	d.names, d.err = t.list(name)
	return d
}

// list gives a directory's names, in lexical order, also where others may write it: the error says so then. Many a host
// has /lib as a link to /usr/lib, with hundreds of units: what is known by another path is not read again.
func (t *trusted) list(name string) ([]string, error) {
	var untrusted error
	fd, at, err := t.OpenDir(name, func(at string, fd int, st *unix.Stat_t) error {
		if why := hostfs.Judge(fd, st); why != "" && untrusted == nil {
			untrusted = &hostfs.UntrustedError{Path: name, At: at, Why: why}
		}
		return nil
	})
	if errors.Is(err, unix.ENOTDIR) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, cmp.Or(untrusted, err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	if known := t.dirs[at+"/"]; known != nil && at+"/" != name {
		return known.names, untrusted
	}
	names := hostfs.NamesIn(dir)
	slices.Sort(names)
	return names, untrusted
}

// ReadFile is ReadTrusted, without a walk for what is not there.
func (t *trusted) ReadFile(name string) ([]byte, error) {
	dir, base := path.Split(name)
	if path.Clean(name) == name && t.dir(dir).lacks(base) { // after a link, ".." leads elsewhere
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return t.ReadTrusted(name)
}

func (t *trusted) Glob(pattern string) []string {
	dir, base := path.Split(path.Clean(pattern))
	if strings.ContainsAny(dir, `*?[\`) {
		return t.FS.Glob(pattern)
	}
	var out []string
	for _, name := range t.dir(dir).names {
		if matches(base, name) {
			out = append(out, dir+name)
		}
	}
	return out
}

// matches is filepath.Match, and ten times as fast for "*.suffix" and a plain name, which nearly all patterns are.
func matches(pattern, name string) bool {
	switch {
	case !strings.ContainsAny(pattern, `*?[\`):
		return pattern == name
	case pattern[0] == '*' && !strings.ContainsAny(pattern[1:], `*?[\`):
		return strings.HasSuffix(name, pattern[1:])
	}
	ok, _ := filepath.Match(pattern, name)
	return ok
}
