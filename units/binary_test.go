package units

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/ns"
)

// mounted runs f on a host whose directory p is a tmpfs with those flags and
// options, in a thread with a mount namespace of its own.
func mounted(t *testing.T, h host, p string, flags uintptr, options string, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	err := ns.Do(func() error {
		if err := ns.UnshareMounts(); err != nil {
			return err
		}
		if err := unix.Mount("fh-test", h.path(p), "tmpfs", flags, options); err != nil {
			return fmt.Errorf("mount on %s: %w", p, err)
		}
		f()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestInstallOnMountsThatRefuse(t *testing.T) {
	for _, tt := range []struct {
		row     string
		dir     string
		flags   uintptr
		options string
		want    error
	}{
		{"a noexec /opt is said before anything is written", "/opt", unix.MS_NOEXEC, "", ErrNoExec},
		{"a read-only /opt is said before anything is written", "/opt", unix.MS_RDONLY, "", ErrReadOnly},
		{"a read-only /etc is said before anything is written", "/etc/systemd/system", unix.MS_RDONLY, "", ErrReadOnly},
		{"a full /opt leaves no half of a binary", "/opt", 0, "size=64k", unix.ENOSPC},
	} {
		t.Run(tt.row, func(t *testing.T) {
			h := newHost(t, systemd252)
			c := h.config()
			before := h.snapshot()
			mounted(t, h, tt.dir, tt.flags, tt.options, func() {
				if _, err := Install(context.Background(), c); !errors.Is(err, tt.want) {
					t.Errorf("install says %v, want %v", err, tt.want)
				}
				for p := range h.snapshotOf("/opt") {
					if filepath.Base(p) == "firsthop" && !strings.HasSuffix(p, "/opt/firsthop") || strings.Contains(p, tempPrefix) {
						t.Errorf("%s is there", p)
					}
				}
			})
			h.same(before, "install")
		})
	}
	t.Run("an /opt in memory does not survive, and that is said", func(t *testing.T) {
		h := newHost(t, systemd252)
		c := h.config()
		c.statfs = nil
		mounted(t, h, "/opt", 0, "", func() {
			r, err := Install(context.Background(), c)
			if err != nil || r.Survives || !strings.Contains(strings.Join(r.Warnings, " "), "/opt/firsthop/bin is on a file system in memory") {
				t.Errorf("%v, %+v", err, r)
			}
		})
	})
}

// killEnv makes this test binary install into the tree of that name.
const killEnv = "FH_UNITS_KILL"

func runInstall(root string) error {
	c := Config{Root: root, sockets: []string{}, BinarySource: os.Getenv(killEnv + "_SOURCE"), statfs: onDisk}
	_, err := Install(context.Background(), c)
	return err
}

// Killed while it writes the binary, it leaves the old one in place; the next
// run takes the half file away and completes the work.
func TestInstallKilledWhileItWritesTheBinary(t *testing.T) {
	h := newHost(t, systemd252)
	mustInstall(t, h.config())
	old := mustHash(t, h.path(BinaryPath))
	c := h.config()
	c.BinarySource = otherBuild(t)
	if err := os.Truncate(c.BinarySource, 400<<20); err != nil { // mostly a hole, slow to copy
		t.Fatal(err)
	}
	cmd := exec.Command(self(t))
	cmd.Env = append(os.Environ(), killEnv+"="+h.root, killEnv+"_SOURCE="+c.BinarySource)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tr := newTree(Config{Root: h.root})
	container{t: t}.wait("the temporary file", func() bool { return len(tr.leftovers(filepath.Dir(BinaryPath))) > 0 })
	_ = cmd.Process.Kill()
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("it was not killed: %v", err)
	}
	if left := tr.leftovers(filepath.Dir(BinaryPath)); len(left) != 1 {
		t.Fatalf("killed too late to show anything: %q", left)
	}
	if string(mustHash(t, h.path(BinaryPath))) != string(old) {
		t.Error("the binary is not the old one")
	}
	mustInstall(t, c)
	if string(mustHash(t, h.path(BinaryPath))) != string(mustHash(t, c.BinarySource)) {
		t.Error("the binary is not the new one")
	}
	if left := tr.leftovers(filepath.Dir(BinaryPath)); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}
