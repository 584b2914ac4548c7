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

func (t *trusted) dir(name string) *directory {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.dirs[name]
	if d == nil {
		d = &directory{err: t.CheckTrusted(name)}
		if !errors.Is(d.err, fs.ErrNotExist) {
			d.names = t.Names(name)
			slices.Sort(d.names)
		}
		t.dirs[name] = d
	}
	return d
}

// ReadFile is ReadTrusted, without a walk for what is not there.
func (t *trusted) ReadFile(name string) ([]byte, error) {
	dir, base := path.Split(path.Clean(name))
	d := t.dir(dir)
	if _, there := slices.BinarySearch(d.names, base); errors.Is(d.err, fs.ErrNotExist) || d.err == nil && !there {
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
