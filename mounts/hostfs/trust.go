package hostfs

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// ErrUntrusted is what every *[UntrustedError] is.
var ErrUntrusted = errors.New("only root may write files that firsthop trusts")

// UntrustedError says why a file does not count.
type UntrustedError struct {
	Path string // the file
	At   string // what others may write: the file, a directory or a link on the way to it
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

// Judge says why others than root may write a file, directory or link; "" if only root may.
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
	if onUsersFUSE(fd) {
		return "is on a FUSE file system that a user mounted"
	}
	return ""
}

// onUsersFUSE reports whether a file is on a FUSE file system of another user than root, whose program makes up owners
// and modes. One that our mount table does not hold counts as a user's.
func onUsersFUSE(fd int) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.FUSE_SUPER_MAGIC && !mountedByRoot(MountOf(fd))
}

// mountedByRoot reads the options of a FUSE mount, which name the user.
func mountedByRoot(m *mountinfo.Info) bool {
	return m != nil && slices.Contains(strings.Split(m.VFSOptions, ","), "user_id=0")
}
