package bootstrap

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
)

// holdLock in the environment makes the test binary take the lock of a directory and hold it until its input ends.
const holdLock = "FH_TEST_HOLD_LOCK"

func TestMain(m *testing.M) {
	if dir := os.Getenv(holdLock); dir != "" {
		if _, err := AcquireLock(context.Background(), dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// startHolder starts another process that holds the lock.
func startHolder(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "holder")
	cmd.Env = append(os.Environ(), holdLock+"="+dir)
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
	_, err := AcquireLock(within(t, 20*time.Millisecond), dir)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d (%s holder)", holder.Process.Pid, os.Args[0])) {
		t.Errorf("got %v", err)
	}
}

func TestLockOfADeadHolderIsFree(t *testing.T) {
	dir := t.TempDir()
	holder := startHolder(t, dir)
	taken := make(chan error, 1)
	go func() {
		l, err := AcquireLock(within(t, 10*time.Second), dir)
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
	first, err := AcquireLock(within(t, time.Second), dir)
	if err != nil {
		t.Fatal("the lock in a new file isn't free:", err)
	}
	if _, err := AcquireLock(within(t, 5*time.Millisecond), dir); !errors.Is(err, ErrLocked) {
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
			l, err := AcquireLock(within(t, 30*time.Second), dir)
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
	if _, err := AcquireLock(within(t, time.Second), filepath.Join(t.TempDir(), "gone")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist, by which an init knows that an uninstall took the directory away", err)
	}
}
