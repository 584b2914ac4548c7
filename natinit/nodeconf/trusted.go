package nodeconf

import (
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

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
	if d.err = t.CheckTrusted(name); !errors.Is(d.err, fs.ErrNotExist) {
		d.names = t.Names(name)
		slices.Sort(d.names)
	}
	return d
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
