package units

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

// tree is the host's file system, seen through a prefix.
type tree struct {
	root   string // no slash at the end; "" on the host
	statfs func(string) (fsState, error)
}

func newTree(c Config) tree {
	t := tree{statfs: c.statfs}
	if c.Root != "" {
		t.root = strings.TrimSuffix(path.Clean(c.Root), "/")
	}
	return t
}

// dir returns where the directory name of the host is reachable from here,
// with every symbolic link followed as the host would: an absolute target
// starts at the root of the tree. Parts that do not exist are kept as they are.
func (t tree) dir(name string) (string, error) {
	at, err := hostfs.FS{Root: t.root}.Resolve(name)
	if at == "" {
		return "", fmt.Errorf("resolve %s: %w", t.root+name, err)
	}
	return t.root + strings.TrimSuffix(at, "/") + "/", nil
}

// file returns where the file name of the host is reachable from here. A
// symbolic link at its end is not followed.
func (t tree) file(name string) (string, error) {
	d, err := t.dir(path.Dir(name))
	if err != nil {
		return "", err
	}
	return d + path.Base(name), nil
}

// node is what stands at a path.
type node struct {
	at   string      // where it is reachable from here
	mode fs.FileMode // 0 and exists false when nothing is there
	link string      // target of a symbolic link
	data []byte      // of a regular file, if read
	uid  int         // its owner

	exists bool
}

func (n node) isLink() bool   { return n.mode&fs.ModeSymlink != 0 }
func (n node) isMasked() bool { return n.isLink() && n.link == "/dev/null" }
func (n node) isOurs() bool   { return n.mode.IsRegular() && isOurs(n.data) }

// look reads the file name of the host, contents included.
func (t tree) look(name string) (node, error) {
	n, err := t.lstat(name)
	if err != nil || !n.mode.IsRegular() || !n.exists {
		return n, err
	}
	n.data, err = os.ReadFile(n.at)
	return n, err
}

func (t tree) lstat(name string) (node, error) {
	at, err := t.file(name)
	if err != nil {
		return node{}, err
	}
	n := node{at: at}
	fi, err := os.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return n, nil
	}
	if err != nil {
		return n, err
	}
	n.exists, n.mode, n.uid = true, fi.Mode(), int(fi.Sys().(*syscall.Stat_t).Uid)
	if n.isLink() {
		n.link, err = os.Readlink(at)
	}
	return n, err
}

// names lists a directory of the host; one that does not exist is empty.
func (t tree) names(name string) []string {
	at, err := t.dir(name)
	if err != nil {
		return nil
	}
	entries, err := os.ReadDir(at)
	if err != nil {
		return nil
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (t tree) exists(name string) bool {
	n, err := t.lstat(name)
	return err == nil && n.exists
}

// fsState is what we want to know of a file system.
type fsState struct {
	readOnly, noExec bool
	volatile         string // why what is there is gone after a reboot; "" if it stays
}

// statfs looks at a file system; root comes before the host's paths.
func statfs(root, at string) (fsState, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return fsState{}, &fs.PathError{Op: "statfs", Path: at, Err: err}
	}
	return fsState{
		readOnly: st.Flags&unix.ST_RDONLY != 0,
		noExec:   st.Flags&unix.ST_NOEXEC != 0,
		volatile: inMemory(root, at),
	}, nil
}

// fsOf returns the state of the file system that a file in the directory name
// would be written to: that of its nearest parent that exists.
func (t tree) fsOf(name string) (fsState, error) {
	at, err := t.dir(name)
	if err != nil {
		return fsState{}, err
	}
	for {
		st, err := t.statfs(at)
		if !errors.Is(err, fs.ErrNotExist) || len(at) <= len(t.root)+1 {
			return st, err
		}
		at = path.Dir(strings.TrimSuffix(at, "/"))
	}
}
