package hostfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrUntrusted is what every *[UntrustedError] is.
var ErrUntrusted = errors.New("only root may write files that firsthop trusts")

// UntrustedError says why a file does not count.
type UntrustedError struct {
	Path string // the file
	At   string // what somebody else may write: the file, a directory or a link on the way to it
	Why  string // "is writable by group 1000"
}

func (e *UntrustedError) Error() string {
	at := e.At + " "
	if e.At == e.Path {
		at = "it "
	}
	return fmt.Sprintf("ignored %s: %s%s; %v", e.Path, at, e.Why, ErrUntrusted)
}

// Unwrap makes errors.Is(err, ErrUntrusted) true.
func (e *UntrustedError) Unwrap() error { return ErrUntrusted }

// Judge says why somebody else than root may write a file, directory or link; "" if nobody may.
func Judge(fd int, st *unix.Stat_t) string {
	kind := st.Mode & unix.S_IFMT
	switch {
	case st.Uid != 0:
		return fmt.Sprintf("belongs to user %d", st.Uid)
	case kind == unix.S_IFLNK: // its mode is always 0777 and means nothing
	case kind == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0: // others can add entries, which are then theirs
	case st.Mode&0o002 != 0:
		return "is writable by everybody"
	case st.Mode&0o020 != 0:
		return fmt.Sprintf("is writable by group %d", st.Gid)
	}
	if onUsersFUSE(fd, st) {
		return "is on a FUSE file system that a user mounted"
	}
	return ""
}

// onUsersFUSE tells whether a file is on a FUSE file system of somebody else than root, whose program makes up owners
// and modes. The mount options name the user. One that our mount table does not hold counts as a user's.
func onUsersFUSE(fd int, st *unix.Stat_t) bool {
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil || fs.Type != unix.FUSE_SUPER_MAGIC {
		return false
	}
	for _, table := range []string{"/proc/thread-self/mountinfo", "/proc/1/mountinfo"} {
		data, err := os.ReadFile(table)
		if err == nil && mountedByRoot(data, unix.Major(st.Dev), unix.Minor(st.Dev)) {
			return false
		}
	}
	return true
}

// mountedByRoot reads a mountinfo (proc(5)): "36 35 0:31 / /mnt rw - fuse.x x rw,user_id=0,group_id=0".
func mountedByRoot(table []byte, major, minor uint32) bool {
	device := fmt.Sprintf("%d:%d", major, minor)
	for line := range bytes.Lines(table) {
		fields := strings.Fields(string(line))
		if len(fields) > 6 && fields[2] == device {
			return slices.Contains(strings.Split(fields[len(fields)-1], ","), "user_id=0")
		}
	}
	return false
}
