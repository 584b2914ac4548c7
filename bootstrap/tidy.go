package bootstrap

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// leftOvers are the temporary files that killed runs left in a directory of
// the instance: with the instance's lock nobody else writes there.
func leftOvers(dir string) []string {
	entries, _ := os.ReadDir(dir) // no directory, nothing left over
	var out []string
	for _, e := range entries {
		temporary := func(name string) bool { return strings.HasPrefix(e.Name(), tempPrefix(name)) }
		if slices.ContainsFunc([]string{LedgerName, StatusName, filepath.Base(apiserver.CachePath(dir))}, temporary) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out
}

// tidy removes what killed runs left over. What can't be removed is in nobody's
// way.
func tidy(dirs ...string) {
	for _, dir := range dirs {
		for _, path := range leftOvers(dir) {
			os.Remove(path)
		}
	}
}
