package instance

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// holders are those who have a file locked, as far as they can be seen.
type holders struct {
	root   string // "pid 7 (firsthop)", a process of root that has the file open
	others string // likewise, any other
}

func (h holders) String() string {
	return cmp.Or(h.root, h.others, "a process that this one cannot see")
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
