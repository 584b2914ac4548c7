package inside

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/lab"
)

// traces are what could have changed on a machine, a line a thing.
type traces []string

// takeTraces lists mounts, attached programs, and files and pins wherever firsthop may put some.
func takeTraces(t *testing.T) traces {
	t.Helper()
	s := append(attached(t), files(t, "/sys/fs/bpf", "/run", "/var", "/etc", "/opt")...)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		s = append(s, "mount "+strings.Join(fields[4:], " ")) // without ids, which are given anew
	}
	slices.Sort(s)
	return s
}

// takeServing lists what serves: programs and pins, with their identity.
func takeServing(t *testing.T) traces {
	t.Helper()
	return append(attached(t), files(t, "/sys/fs/bpf")...)
}

// cgroupRoot is where this machine has the top of the v2 hierarchy.
func cgroupRoot() string {
	for _, dir := range []string{"/sys/fs/cgroup/unified", "/run/firsthop/cgroup", "/sys/fs/cgroup"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	return ""
}

// attached lists the programs at the hooks of the root cgroup.
func attached(t *testing.T) (s traces) {
	t.Helper()
	root := cgroupRoot()
	if root == "" {
		return nil
	}
	dir, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	return lab.AttachedPrograms(t, dir)
}

// files lists what is below directories, with inodes for pins: a pin that was made again has another.
func files(t *testing.T, dirs ...string) (s traces) {
	t.Helper()
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			line := fmt.Sprintf("file %s mode %o", path, st.Mode)
			if strings.HasPrefix(path, "/sys/fs/bpf/") {
				line += fmt.Sprintf(" inode %d", st.Ino)
			}
			s = append(s, line)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s traces) wantSame(t *testing.T, what string, before traces) {
	t.Helper()
	if diff := cmp.Diff(before, s); diff != "" {
		t.Errorf("%s changed (- before, + after):\n%s", what, diff)
	}
}

// eventuallySame waits for a machine to be what it was: before 6.1 a link that loses its last pin detaches a moment later.
func eventuallySame(t *testing.T, what string, before traces) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !slices.Equal(takeTraces(t), before) && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	takeTraces(t).wantSame(t, what, before)
}
