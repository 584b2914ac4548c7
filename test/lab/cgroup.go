package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// killDeadline bounds the wait for killed processes to be gone. A process in uninterruptible sleep may outlast it.
const killDeadline = 10 * time.Second

// createCgroup makes the lab's cgroup below the root of the v2 hierarchy, on pure v2 and hybrid hosts alike. A host that
// has not mounted v2 gets a mount below the lab's directory.
func (l *Lab) createCgroup() error {
	root, err := cgroup2Root()
	if err != nil {
		return err
	}
	if root == "" {
		root = filepath.Join(l.Dir, "cgroup2")
		if err := os.Mkdir(root, 0o755); err != nil {
			return err
		}
		flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
		if err := unix.Mount("cgroup2", root, "cgroup2", flags, ""); err != nil {
			return fmt.Errorf("mount cgroup2 on %s: %w", root, err)
		}
	}
	dir := filepath.Join(root, l.Name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("create cgroup: %w", err)
	}
	l.Cgroup = dir
	l.cgroupFD, err = os.Open(dir)
	return err
}

// Hierarchy is one of the hierarchies of cgroup version 1 that the machine has mounted.
type Hierarchy struct {
	Name    string // of the directory that it is mounted on, as "cpu,cpuacct"
	Options string // by which mount(2) finds it again, as "cpu,cpuacct" or "name=systemd"
	Dir     string // the lab's cgroup in it
}

// Hierarchies lists those of version 1, each with its root as Dir.
func Hierarchies() ([]Hierarchy, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	var all []Hierarchy
	for _, m := range mounts {
		if m.FSType != "cgroup" || m.Root != "/" || unix.Access(m.Mountpoint, unix.W_OK) != nil {
			continue
		}
		var options []string
		for option := range strings.SplitSeq(m.VFSOptions, ",") {
			if option != "rw" && option != "xattr" && !strings.HasPrefix(option, "release_agent=") {
				options = append(options, option)
			}
		}
		all = append(all, Hierarchy{filepath.Base(m.Mountpoint), strings.Join(options, ","), m.Mountpoint})
	}
	return all, nil
}

// cgroupRoots lists where the machine has its hierarchies, of both versions.
func cgroupRoots() ([]string, error) {
	root, err := cgroup2Root()
	if err != nil {
		return nil, err
	}
	var roots []string
	if root != "" {
		roots = append(roots, root)
	}
	v1, err := Hierarchies()
	for _, h := range v1 {
		roots = append(roots, h.Dir)
	}
	return roots, err
}

// createCgroupsV1 makes a cgroup in each hierarchy of version 1, in which processes can be at once.
func (l *Lab) createCgroupsV1() error {
	all, err := Hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		root := h.Dir
		h.Dir = filepath.Join(root, l.Name)
		if err := os.Mkdir(h.Dir, 0o755); err != nil {
			return fmt.Errorf("create cgroup: %w", err)
		}
		l.CgroupsV1 = append(l.CgroupsV1, h)
		// A cpuset that is empty takes no process; its children get its values by clone_children.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(root, name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(h.Dir, name), value, 0)
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(h.Dir, "cgroup.clone_children"), []byte("1"), 0)
			}
			if err != nil {
				return fmt.Errorf("prepare cpuset: %w", err)
			}
		}
	}
	return nil
}

// NewCgroup makes a cgroup below the lab's, as a pod or a service would have, and returns its path.
func (l *Lab) NewCgroup(name string) (string, error) {
	dir := filepath.Join(l.Cgroup, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("create cgroup: %w", err)
	}
	return dir, nil
}

// CgroupID is what the kernel calls a cgroup: its inode number, which before Linux 5.5 (kernel commit 33c5ac917519) has 32
// bits, and a generation above them.
func CgroupID(dir string) (uint64, error) {
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
	if err != nil {
		return 0, fmt.Errorf("read the id of the cgroup %s: %w", dir, err)
	}
	if handle.Size() != 8 {
		return 0, fmt.Errorf("read the id of the cgroup %s: it has %d bytes", dir, handle.Size())
	}
	return binary.NativeEndian.Uint64(handle.Bytes()), nil // before 5.5 the inode number comes first, little-endian
}

// cgroup2Root returns where the root of the v2 hierarchy is mounted writable, "" when it is nowhere.
func cgroup2Root() (string, error) {
	mounts, err := readMounts()
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.FSType == "cgroup2" && m.Root == "/" && unix.Access(m.Mountpoint, unix.W_OK) == nil {
			return m.Mountpoint, nil
		}
	}
	return "", nil
}

// removeCgroup kills every process in a cgroup and below it, then removes the whole tree. An absent one is no error.
func removeCgroup(dir string) error {
	deadline := time.Now().Add(killDeadline)
	for {
		pids, err := killCgroup(dir)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill the processes of %s: %v are still there after %s", dir, pids, killDeadline)
		}
		time.Sleep(time.Millisecond)
	}
	dirs, err := cgroupTree(dir)
	if err != nil {
		return err
	}
	// Children before parents. A just emptied cgroup may be busy for a moment.
	for _, d := range slices.Backward(dirs) {
		err := os.Remove(d)
		for errors.Is(err, unix.EBUSY) && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
			err = os.Remove(d)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

// killCgroup sends SIGKILL to every process below dir and returns those that it found.
func killCgroup(dir string) ([]int, error) {
	dirs, err := cgroupTree(dir)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, d := range dirs {
		data, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for field := range strings.FieldsSeq(string(data)) {
			pid, err := strconv.Atoi(field)
			if err != nil || pid <= 0 {
				continue // 0 is a process of another pid namespace: not ours
			}
			if err := unix.Kill(pid, unix.SIGKILL); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// cgroupTree lists dir and every cgroup below it, parents first; nothing when dir is absent.
func cgroupTree(dir string) ([]string, error) {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	return dirs, err
}
