package nodeconf

import (
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// files are a host's files; the value "->/dev/null" is a link that leads to
// nothing regular.
type files map[string]string

func (f files) ReadFile(p string) ([]byte, error) {
	s, ok := f[p]
	if !ok || strings.HasPrefix(s, "->") {
		return nil, fs.ErrNotExist
	}
	return []byte(s), nil
}

func (f files) Glob(pattern string) []string {
	seen := map[string]bool{}
	for p := range f {
		for ; p != "/"; p = path.Dir(p) {
			if ok, _ := path.Match(pattern, p); ok {
				seen[p] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}
