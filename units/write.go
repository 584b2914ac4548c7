package units

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/natinit/instance"
)

// tempPrefix begins the names of our temporary files. What a kill leaves of
// them is taken away by the next run.
const tempPrefix = ".firsthop-"

const selinuxAttr = "security.selinux"

// replaceFile puts a new file at a path, in one step for everybody who looks:
// written beside it, synced, renamed over it, and the directory synced, so
// that after a power loss there is the old file or the new one.
//
// The SELinux label is that of the first of like that has one: without it, the
// new file would carry the label of what creates files here, and systemd
// may not be allowed to read or execute it. Without SELinux nothing has one.
func replaceFile(at string, mode fs.FileMode, like []string, contents io.Reader) error {
	prepare := func(f *os.File) error {
		if err := keepOwner(f, at); err != nil {
			return err
		}
		return copyLabel(f, like)
	}
	return instance.Replace(at, contents, instance.Writing{Mode: mode, Durable: true, Prepare: prepare, Temp: tempPrefix + path.Base(at) + "-"})
}

// keepOwner gives f the owner of the file that it will replace. A new file
// belongs to us, which is root.
func keepOwner(f *os.File, path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil // nothing to keep
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) == os.Geteuid() && int(st.Gid) == os.Getegid() {
		return nil
	}
	return f.Chown(int(st.Uid), int(st.Gid))
}

func copyLabel(f *os.File, like []string) error {
	buf := make([]byte, 1024) // a context is well below 256 bytes
	for _, p := range like {
		n, err := unix.Lgetxattr(p, selinuxAttr, buf)
		if err != nil || n == 0 {
			continue
		}
		if err := unix.Fsetxattr(int(f.Fd()), selinuxAttr, buf[:n], 0); err != nil {
			return fmt.Errorf("give %s the SELinux label %q of %s: %w", f.Name(), bytes.TrimRight(buf[:n], "\x00"), p, err)
		}
		return nil
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// Some file systems can not sync a directory and say EINVAL.
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// leftovers lists the temporary files that a killed run left in a directory of the host.
func (t tree) leftovers(dir string) []string {
	var found []string
	for _, name := range t.names(dir) {
		if !strings.HasPrefix(name, tempPrefix) {
			continue
		}
		p := path.Join(dir, name)
		if n, err := t.lstat(p); err == nil && n.mode.IsRegular() {
			found = append(found, p)
		}
	}
	return found
}
