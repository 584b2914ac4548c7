package mounts

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// mountRecorded mounts a bpffs on a kernel that would not keep its source (see
// devicePrefix): it is made without being mounted anywhere, so that its device
// can be recorded before it is, and who is killed in between leaves no mount
// that nobody knows. It returns the identity.
//
// Where the source is kept, or where the calls are missing (before Linux 5.2)
// or forbidden, it does nothing and returns "": mount(2) is then the way.
func mountRecorded(dir, source string, record func(identity string) error) (identity string, err error) {
	fs, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", nil
	}
	defer unix.Close(fs)
	// A second source is refused by those that keep one, and only by them.
	first := unix.FsconfigSetString(fs, "source", source)
	second := unix.FsconfigSetString(fs, "source", source)
	if first != nil || second != nil {
		return "", nil
	}
	if err := errors.Join(unix.FsconfigSetString(fs, "mode", "0700"), unix.FsconfigCreate(fs)); err != nil {
		return "", nil
	}
	const attributes = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC // relatime is 0
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return "", nil
	}
	defer unix.Close(fd) // which is its end, unless it is moved
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", fmt.Errorf("look at a new bpffs: %w", err)
	}
	identity = fmt.Sprintf("%s%d:%d", devicePrefix, unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)))
	if err := record(identity); err != nil {
		return "", err
	}
	err = unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
	switch {
	case err == nil:
		return identity, nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSYS):
		return "", nil // a seccomp profile may know fsopen and not this
	}
	return "", explainMount("bpf", dir, err)
}
