package bootstrap

import (
	"os"
	"path/filepath"
	"slices"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/instance"
)

// Leftovers are the temporary files that killed runs left in a directory of
// the instance: with the instance's lock nobody else writes there.
func Leftovers(dir string) []string {
	out := instance.Leftovers(dir, instance.JournalName, instance.StatusName, filepath.Base(apiserver.CachePath(dir)))
	return slices.DeleteFunc(out, func(path string) bool { return filepath.Base(path) == instance.BackupName })
}

// cleanup removes what killed runs left over. What can't be removed is in nobody's
// way.
func cleanup(dirs ...string) {
	for _, dir := range dirs {
		for _, path := range Leftovers(dir) {
			os.Remove(path)
		}
	}
}
