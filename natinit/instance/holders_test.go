package instance

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// lockedBy has a process of a user hold the lock on a directory, until the test ends. With orphan, the process that took
// the lock has ended, and a child has it.
func lockedBy(t *testing.T, uid uint32, dir string, orphan bool) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to start processes of others")
	}
	if _, err := exec.LookPath("flock"); err != nil {
		t.Skip("needs flock of util-linux")
	}
	script := `exec 9<"$1"; flock -x 9; echo held; cat >/dev/null`
	if orphan {
		script = `exec 9<"$1"; sh -c 'flock -x 9'; echo held; cat >/dev/null`
	}
	cmd := exec.Command("sh", "-c", script, "sh", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	b := make([]byte, 5)
	if _, err := out.Read(b); err != nil || string(b) != "held\n" {
		t.Fatalf("%q, %v", b, err)
	}
}

func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fh-dirlock-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestLockDirIgnoresUsers(t *testing.T) {
	for name, orphan := range map[string]bool{"by its process": false, "by a process that left it to a child": true} {
		t.Run(name, func(t *testing.T) {
			dir := openDir(t)
			lockedBy(t, 65534, dir, orphan)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			l, err := LockDir(ctx, dir)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Release()
			if !strings.HasPrefix(l.Ignored, "pid ") {
				t.Errorf("ignored %q", l.Ignored)
			}
		})
	}
}

// The lock of a process of root counts, whatever else runs.
func TestLockDirWaitsForRoot(t *testing.T) {
	dir := openDir(t)
	first, err := LockDir(t.Context(), dir)
	if err != nil || first.Ignored != "" {
		t.Fatal(first, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := LockDir(ctx, dir); !errors.Is(err, ErrLocked) {
		t.Fatalf("%v, want ErrLocked", err)
	}
	if by := holdersOf(first.f); by.others != "" || !strings.HasPrefix(by.root, "pid ") {
		t.Fatalf("%+v", by)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	second, err := LockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	_ = second.Release()
}
