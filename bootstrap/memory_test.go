package bootstrap

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/mounts"
)

func TestWarnOfMemory(t *testing.T) {
	for _, row := range []struct {
		is    string
		files map[string]string
		says  string // "" for nothing
	}{
		{"a container in a cgroup namespace", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "16777216\n"}, "is 16 MiB (/sys/fs/cgroup/memory.max), and 32 MiB are needed"},
		{"a unit of systemd", map[string]string{"proc/self/cgroup": "0::/system.slice/a.service\n", "sys/fs/cgroup/system.slice/a.service/memory.max": "8388608\n"}, "is 8 MiB"},
		{"no limit", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, ""},
		{"a limit that will do", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "33554432\n"}, ""},
		{"the root, which has no limit", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cgroup.procs": ""}, ""},
		{"cgroup v1 in a container", map[string]string{"proc/self/cgroup": "12:cpu,cpuacct:/a\n9:memory:/kubepods/a\n0::/a\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "4194304\n"}, "is 4 MiB (/sys/fs/cgroup/memory/memory.limit_in_bytes)"},
		{"cgroup v1 on a host", map[string]string{"proc/self/cgroup": "9:memory:/a\n0::/a\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "4194304\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, "is 4 MiB (/sys/fs/cgroup/memory/a/"},
		{"cgroup v1 without a limit", map[string]string{"proc/self/cgroup": "9:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, ""},
		{"nothing to be seen", nil, ""},
		{"a cgroup file that makes no sense", map[string]string{"proc/self/cgroup": "nonsense\n::\n"}, ""},
	} {
		t.Run(row.is, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range row.files {
				file := filepath.Join(root, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			if got := warnOfMemory(root); !strings.Contains(got, row.says) || (got == "") != (row.says == "") {
				t.Errorf("%q, want %q", got, row.says)
			}
		})
	}
}

// TestTakeLockNamesAMissingHost: a container that can't reach the host takes its own directories for the host's, and
// its root is read-only. The reason must come with the consequence.
func TestTakeLockNamesAMissingHost(t *testing.T) {
	why := errors.New("look at /proc/1: this process lacks CAP_SYS_PTRACE")
	nowhere := "/proc/self/mountinfo/firsthop" // below a file
	s := stage{Places: mounts.Places{RunDir: nowhere, NoHost: why}}
	_, err := s.takeLock(t.Context())
	if err == nil || !errors.Is(err, why) || !strings.Contains(err.Error(), nowhere) {
		t.Errorf("%v, want it to say %q too", err, why)
	}
	s.Dirs.RunDir = nowhere // given, so that the host has nothing to do with it
	if _, err := s.takeLock(t.Context()); err == nil || errors.Is(err, why) {
		t.Errorf("%v, want nothing of the host", err)
	}
}
