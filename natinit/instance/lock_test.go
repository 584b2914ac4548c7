package instance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// holdLock in the environment makes the test binary take the lock of a directory and hold it until its input ends.
const holdLock = "FH_TEST_HOLD_LOCK"

func TestMain(m *testing.M) {
	if dir := os.Getenv(holdLock); dir != "" {
		if _, err := Acquire(context.Background(), dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	if root := os.Getenv(liveIn); root != "" {
		if err := errors.Join(unix.Chroot(root), os.Chdir("/")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// liveIn in the environment makes the test binary live in a chroot until its input ends.
const liveIn = "FH_TEST_LIVE_IN"

// startChrooted starts a process whose root is dir, and returns the way to it: /proc/PID/root.
func startChrooted(t *testing.T, dir string) string {
	return fmt.Sprintf("/proc/%d/root", startChild(t, liveIn+"="+dir).Process.Pid)
}

// startHolder starts another process that holds the lock.
func startHolder(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	return startChild(t, holdLock+"="+dir)
}

// startChild starts the test binary anew and waits until it holds what it was told to.
func startChild(t *testing.T, env string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "holder")
	cmd.Env = append(os.Environ(), env)
	stdin, err := cmd.StdinPipe()
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
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("the holder says %q, %v", line, err)
	}
	return cmd
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestLockNamesItsHolder(t *testing.T) {
	dir := t.TempDir()
	holder := startHolder(t, dir)
	_, err := Acquire(within(t, 20*time.Millisecond), dir)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d (%s holder)", holder.Process.Pid, os.Args[0])) {
		t.Errorf("got %v", err)
	}
}

func TestLockOfADeadHolderIsFree(t *testing.T) {
	dir := t.TempDir()
	holder := startHolder(t, dir)
	taken := make(chan error, 1)
	go func() {
		l, err := Acquire(within(t, 10*time.Second), dir)
		if err == nil {
			if l.Waited <= 0 {
				err = errors.New("it doesn't say that it waited")
			}
			err = errors.Join(err, l.Release())
		}
		taken <- err
	}()
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-taken; err != nil {
		t.Error(err)
	}
}

// TestLockOnAReplacedFileIsNoLock: uninstall removes the file, and the next run makes another.
func TestLockOnAReplacedFileIsNoLock(t *testing.T) {
	dir := t.TempDir()
	startHolder(t, dir)
	if err := os.Remove(filepath.Join(dir, LockName)); err != nil {
		t.Fatal(err)
	}
	first, err := Acquire(within(t, time.Second), dir)
	if err != nil {
		t.Fatal("the lock in a new file isn't free:", err)
	}
	if _, err := Acquire(within(t, 5*time.Millisecond), dir); !errors.Is(err, ErrLocked) {
		t.Errorf("two hold the lock in the new file: %v", err)
	}
	if err := first.Release(); err != nil {
		t.Error(err)
	}
}

func TestLockIsHeldByOneAtATime(t *testing.T) {
	dir := t.TempDir()
	var inside, most atomic.Int32
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			l, err := Acquire(within(t, 30*time.Second), dir)
			if err != nil {
				t.Error(err)
				return
			}
			most.Store(max(most.Load(), inside.Add(1)))
			inside.Add(-1)
			if err := l.Release(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if most.Load() != 1 {
		t.Errorf("%d held it at the same time", most.Load())
	}
}

func TestLockWithoutADirectory(t *testing.T) {
	if _, err := Acquire(within(t, time.Second), filepath.Join(t.TempDir(), "gone")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist, by which an init knows that an uninstall took the directory away", err)
	}
}

// TestLockIsNothingOfOthers: a lock is never opened through a link, nor taken on what others could lock as well, and
// root's files are not written.
// An administrator's link to a disk that is not mounted yet is his: it stays, and nobody waits for what it leads to.
func TestMakeAndAcquireLeavesALinkThatLeadsNowhere(t *testing.T) {
	dir := t.TempDir()
	for _, target := range []string{"/nonexistent/firsthop", filepath.Join(dir, "missing")} {
		link := filepath.Join(dir, filepath.Base(target)+"-link")
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		for _, runDir := range []string{link, filepath.Join(link, "below")} {
			l, made, err := MakeAndAcquire(t.Context(), runDir)
			if err == nil || l != nil || len(made) > 0 || errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), target) {
				t.Errorf("%s: lock %v, made %q, error %v, want one that names %s", runDir, l, made, err, target)
			}
		}
		if at, err := os.Readlink(link); err != nil || at != target {
			t.Errorf("the link leads to %q, error %v, want %s", at, err, target)
		}
	}
}

func TestLockIsNothingOfOthers(t *testing.T) {
	needRoot(t)
	for _, name := range []string{LockName, RuntimeLockName} {
		for _, tc := range []struct {
			name    string
			arrange func(t *testing.T, victim, lock string)
			want    string // of the error; "" is none
		}{
			{"a link", func(t *testing.T, victim, lock string) { must(t, os.Symlink(victim, lock)) }, "symbolic link"},
			{"a link of nobody's", func(t *testing.T, victim, lock string) { must(t, os.Symlink(victim, lock), os.Lchown(lock, nobody, 0)) }, "symbolic link"},
			{"a second name", func(t *testing.T, victim, lock string) { must(t, os.Link(victim, lock)) }, ""},
			{"a file of nobody's", func(t *testing.T, _, lock string) { must(t, os.WriteFile(lock, nil, 0o600), os.Chown(lock, nobody, 0)) }, "belongs to uid 65534"},
			{"a FIFO", func(t *testing.T, _, lock string) { must(t, unix.Mkfifo(lock, 0o600)) }, "not a regular file"},
			{"a directory", func(t *testing.T, _, lock string) { must(t, os.Mkdir(lock, 0o700)) }, "not a regular file"},
		} {
			t.Run(name+" is "+tc.name, func(t *testing.T) {
				dir := t.TempDir()
				victim := filepath.Join(dir, "victim")
				must(t, os.WriteFile(victim, []byte("precious"), 0o600))
				tc.arrange(t, victim, filepath.Join(dir, name))
				var err error
				if name == LockName {
					var l *Lock
					if l, err = Acquire(within(t, time.Second), dir); err == nil {
						defer l.Release()
					}
				} else {
					var unlock func()
					if unlock, err = LockRuntime(dir); err == nil {
						defer unlock()
					}
				}
				if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
					t.Errorf("got %v, want %q", err, tc.want)
				}
				if data, _ := os.ReadFile(victim); string(data) != "precious" {
					t.Errorf("the victim has %q", data)
				}
			})
		}
	}
}

func TestRuntimeAbsentBelievesNoFalseLock(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	lock := filepath.Join(dir, RuntimeLockName)
	startHolder(t, dir)
	must(t, os.Symlink(LockName, lock)) // which is held
	if err := RuntimeAbsent(dir); err != nil {
		t.Errorf("a link to a lock that is held: %v", err)
	}
	must(t, os.Remove(lock))
	unlock, err := LockRuntime(dir)
	must(t, err)
	defer unlock()
	if err := RuntimeAbsent(dir); !errors.Is(err, ErrRuntime) {
		t.Errorf("a runtime's lock: %v", err)
	}
}
