package instance

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

// walk returns a descriptor (O_PATH) of the directory at path, which must be absolute, and who else may change what
// that path leads to.
func walk(path string) (fd int, trust Trust, err error) {
	if !filepath.IsAbs(path) {
		return -1, Trust{}, fmt.Errorf("directory %q: want an absolute path", path)
	}
	fd, end, err := hostfs.FS{}.OpenDir(path, func(at string, fd int, st *unix.Stat_t) error {
		switch kind := st.Mode & unix.S_IFMT; {
		case kind == unix.S_IFDIR:
			trust.judge(at, fd, *st)
		case kind == unix.S_IFLNK && hostfs.OnProc(fd):
			trust = Trust{} // the way to a process does not lead through directories that anybody could exchange
		case kind == unix.S_IFLNK && !ours(st.Uid):
			return fmt.Errorf("%s is a link that belongs to user %d and is not followed: %w", at, st.Uid, ErrUntrusted)
		}
		return nil
	})
	if err != nil {
		return -1, Trust{}, err
	}
	trust.finish(end)
	return fd, trust, nil
}

// ours reports whether a file's owner is root, or who runs this.
func ours(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() }
