package instance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// LockDir waits for the lock (flock) on a directory until ctx ends; the error then matches ErrLocked.
//
// Whoever may open a directory may lock it, and others than root may open a mount point, or a bpffs of mode 1777. A lock
// of theirs does not count: it would keep firsthop from starting for as long as they like. Lock.Ignored says whose it is.
// A lock of which /proc/locks does not say whose it is (a process of another pid namespace) counts.
func LockDir(ctx context.Context, dir string) (*Lock, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	seen := "" // twice: what was root's may have ended while it was looked at, and another of root's have it by now
	for wait := time.Millisecond; ; wait = min(wait*2, 20*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &Lock{f: f}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, &fs.PathError{Op: "flock", Path: dir, Err: err}
		}
		by := holdersOf(f)
		if by.others != "" && by.others == seen {
			return &Lock{f: f, Ignored: by.others}, nil
		}
		seen = by.others
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for the lock on %s: %w", dir, ErrLocked)
		case <-time.After(wait):
		}
	}
}

// holders are those who have a file locked, as far as they can be seen.
type holders struct {
	root   string // "pid 7 (firsthop)", a process of root that has the file open
	others string // likewise, any other
}

// holdersOf looks into /proc/locks, which names a lock by device and inode, and by the process that took it.
func holdersOf(f *os.File) (found holders) {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return found
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return found
	}
	defer locks.Close()
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 1234 00:2a:17 0 EOF
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[1] != "FLOCK" || fields[5] != want {
			continue
		}
		pid, err := strconv.Atoi(fields[4])
		if err != nil || pid <= 0 {
			continue
		}
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		who := fmt.Sprintf("pid %d (%q)", pid, strings.TrimSpace(string(comm)))
		if ofRoot(pid) && hasOpen(pid, &st) {
			found.root = who
		} else {
			found.others = who
		}
	}
	return found
}

// ofRoot tells whether all four user ids of a process are 0: one that a user has started from a setuid program keeps the
// user's real id.
func ofRoot(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
			return strings.Join(strings.Fields(ids), " ") == "0 0 0 0"
		}
	}
	return false
}

// hasOpen tells whether a process has a file open. The one that took a lock may have ended and left it to a child, and
// its pid may be another's by now.
func hasOpen(pid int, file *unix.Stat_t) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		var st unix.Stat_t
		if unix.Stat(dir+"/"+fd.Name(), &st) == nil && st.Dev == file.Dev && st.Ino == file.Ino {
			return true
		}
	}
	return false
}
