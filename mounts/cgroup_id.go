package mounts

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/mounts/ns"
)

// Types of file handles that kernfs makes (include/linux/exportfs.h).
const (
	fileIDIno32Gen = 1    // FILEID_INO32_GEN
	fileIDKernfs   = 0xfe // FILEID_KERNFS
)

// CgroupID returns the id of the cgroup v2 directory at path: the number that
// bpf_get_current_cgroup_id and the kernel's link information give. No two
// cgroups that exist at the same time have the same, wherever and however often
// the hierarchy is mounted, and the root of the whole hierarchy has the fixed
// one that IsTopCgroup knows.
//
// It comes from name_to_handle_at: since 5.5 the handle is the 64-bit kernfs id
// (FILEID_KERNFS, kernel commit 33c5ac9175195); before that it is inode number
// and generation, 32 bits each, which together are the id. The inode number
// alone is not enough there, for it is used again.
func CgroupID(path string) (uint64, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return cgroupID(fd, path)
}

// IsTopCgroup reports whether id is that of the root of the whole hierarchy,
// the cgroup of which all others are descendants.
//
// It is the first node of its file system, which gets inode number 1, and,
// before 5.5, generation 1 in the upper half. (cgroup_setup_root warns if it is
// another: fs/kernfs/dir.c, kernel/cgroup/cgroup.c.)
func IsTopCgroup(id uint64) bool { return uint32(id) == 1 && id>>32 <= 1 }

func cgroupID(fd int, path string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if uint32(st.Type) != unix.CGROUP2_SUPER_MAGIC {
		return 0, fmt.Errorf("read cgroup id of %s: %w", path, ErrNotCgroup)
	}
	handle, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.ENOSYS) {
		return 0, fmt.Errorf("read cgroup id of %s: name_to_handle_at: %w: the kernel is built without CONFIG_FHANDLE", path, err)
	}
	if err != nil {
		return 0, privileges.Refused("name_to_handle_at", path, err)
	}
	id, err := decodeHandle(handle.Type(), handle.Bytes())
	if err != nil {
		return 0, fmt.Errorf("read cgroup id of %s: %w", path, err)
	}
	return id, nil
}

// decodeHandle reads a kernfs file handle, which is in host byte order.
func decodeHandle(kind int32, b []byte) (uint64, error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("file handle of type %#x has %d bytes, want 8", kind, len(b))
	}
	switch kind {
	case fileIDKernfs:
		return binary.NativeEndian.Uint64(b), nil
	case fileIDIno32Gen:
		ino, gen := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:])
		return uint64(gen)<<32 | uint64(ino), nil
	}
	return 0, fmt.Errorf("file handle has unknown type %#x", kind)
}

// trueRoot is what is known about the id of the true root.
type trueRoot struct {
	known bool
	top   bool   // it is the top of the hierarchy
	id    uint64 // else its id
	how   string // how it is known, or why not
}

func (r trueRoot) is(id uint64) bool {
	if r.top {
		return IsTopCgroup(id)
	}
	return r.known && id == r.id
}

// findTrueRoot finds out which cgroup is the root of the cgroup namespace of
// the host's first process.
//
// If that is the initial cgroup namespace, as on every machine and virtual
// machine, it is the top. Otherwise, in kind, only the kernel knows: a mount
// shows the root of the cgroup namespace in which it was made. So we go into
// that namespace, make a mount that is attached nowhere, and ask for its id.
//
// In the initial namespace that would do harm: each new mount there sets the
// options of the whole hierarchy, and one without nsdelegate or
// memory_recursiveprot switches them off for all (apply_cgroup_root_flags in
// kernel/cgroup/cgroup.c). In any other namespace the options are ignored.
func findTrueRoot(h *Host) trueRoot {
	if h.topCgroup {
		return trueRoot{known: true, top: true, how: "pid 1 is in the initial cgroup namespace, whose root is the top of the hierarchy"}
	}
	if h.entry == "" {
		if ns, err := os.Readlink("/proc/thread-self/ns/cgroup"); err == nil && ns == initCgroupNamespace {
			// Cgroup namespaces nest: pid 1's is ours or above ours.
			return trueRoot{known: true, top: true, how: "we are in the initial cgroup namespace, whose root is the top of the hierarchy"}
		}
		return trueRoot{how: "pid 1 is out of reach, and we are in a cgroup namespace of our own"}
	}
	var id uint64
	err := ns.Do(func() error {
		if !h.ownCgroup {
			dir, err := os.Open(h.entry)
			if err != nil {
				return err
			}
			defer dir.Close()
			if err := ns.EnterOf(dir, unix.CLONE_NEWCGROUP); err != nil {
				return err
			}
		}
		var err error
		id, err = namespaceRootID()
		return err
	})
	if err != nil {
		return trueRoot{how: "the root of pid 1's cgroup namespace could not be read: " + err.Error()}
	}
	return trueRoot{known: true, id: id, how: fmt.Sprintf("the root of pid 1's cgroup namespace has id %d", id)}
}

// namespaceRootID is the id of the root of the calling thread's cgroup
// namespace. It must not be the initial one, and the thread must end afterwards.
func namespaceRootID() (uint64, error) {
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) { // before 5.2
		return namespaceRootIDByMount()
	}
	if err != nil {
		return 0, privileges.Refused("fsopen", "cgroup2", err, unix.CAP_SYS_ADMIN)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return 0, privileges.Refused("fsconfig", "cgroup2", err, unix.CAP_SYS_ADMIN)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return 0, privileges.Refused("fsmount", "cgroup2", err, unix.CAP_SYS_ADMIN)
	}
	defer unix.Close(fd)
	return cgroupID(fd, "the root of a cgroup namespace")
}

// namespaceRootIDByMount mounts in a mount namespace that ends with the thread.
func namespaceRootIDByMount() (uint64, error) {
	if err := ns.UnshareMounts(); err != nil {
		return 0, err
	}
	// Any directory that exists will do.
	if err := unix.Mount("none", "/proc", "cgroup2", 0, ""); err != nil {
		return 0, explainMount("cgroup2", "/proc", err)
	}
	return CgroupID("/proc")
}
