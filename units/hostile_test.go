package units

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

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

func TestRealMountsThatRefuse(t *testing.T) {
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
func TestKilledWhileItWritesTheBinary(t *testing.T) {
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

// A socket on which nobody answers costs the handshake's time and no more, and
// the files are used.
func TestSocketThatDoesNotAnswer(t *testing.T) {
	h := newHost(t, systemd252)
	socket := filepath.Join(h.root, "private")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if m, err := openSocket(context.Background(), socket, 50*time.Millisecond); err == nil {
		t.Errorf("connected to %v", m)
	}
	h2 := newHost(t, systemd252) // a tree without sockets
	r, err := Install(context.Background(), Config{Root: h2.root, BinarySource: self(t), statfs: onDisk})
	if err != nil || r.Over != "files" || !r.Survives {
		t.Errorf("%v, %+v", err, r)
	}
	if !strings.Contains(strings.Join(r.Notes, " "), "/run/systemd/private") {
		t.Errorf("does not say which sockets were tried: %q", r.Notes)
	}
}

// Paths of sockets may be longer than a socket address: /proc/PID/root/...
func TestLongSocketPath(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 100), "a,b=c")
	if err := os.MkdirAll(long, 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(long)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/s", d.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr, done, err := socketAddress(long + "/s")
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	conn, err := net.Dial("unix", addr)
	if err != nil {
		t.Fatalf("dial %q: %v", addr, err)
	}
	_ = conn.Close()
}

func TestDetectInit(t *testing.T) {
	for row, tt := range map[string]struct {
		host map[string]string
		want Init
	}{
		"Debian 12":                           {systemd252, Init{Systemd, 252, "/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so"}},
		"Debian 10, /lib is a link":           {map[string]string{"/run/systemd/system/": "", "/lib": "-> usr/lib", "/usr/lib/systemd/libsystemd-shared-241.so": ""}, Init{Systemd, 241, "/usr/lib/systemd/libsystemd-shared-241.so"}},
		"Ubuntu 18.04, /lib is a directory":   {map[string]string{"/run/systemd/system/": "", "/lib/systemd/libsystemd-shared-237.so": ""}, Init{Systemd, 237, "/lib/systemd/libsystemd-shared-237.so"}},
		"Fedora 40":                           {map[string]string{"/run/systemd/system/": "", "/usr/lib/systemd/libsystemd-shared-255.4-1.fc40.so": ""}, Init{Systemd, 255, "/usr/lib/systemd/libsystemd-shared-255.4-1.fc40.so"}},
		"CentOS 7 has no such library":        {map[string]string{"/run/systemd/system/": "", "/usr/lib/systemd/systemd": ""}, Init{Systemd, 0, "/run/systemd/system"}},
		"in the middle of an upgrade":         {map[string]string{"/run/systemd/system/": "", "/usr/lib/systemd/libsystemd-shared-237.so": "", "/usr/lib/systemd/libsystemd-shared-241.so": ""}, Init{Systemd, 0, "/run/systemd/system"}},
		"systemd is installed, not running":   {map[string]string{"/usr/lib/systemd/libsystemd-shared-252.so": "", "/proc/1/comm": "runit\n"}, Init{NoInit, 0, "pid 1 is runit"}},
		"OpenRC is installed, not running":    {map[string]string{"/sbin/openrc-run": "", "/proc/1/comm": "sh\n"}, Init{NoInit, 0, "pid 1 is sh"}},
		"Alpine":                              {openrc, Init{OpenRC, 0, "/run/openrc"}},
		"sysvinit":                            {sysvinit, Init{FstabInit, 0, "/etc/inittab"}},
		"an inittab without an fstab":         {map[string]string{"/etc/inittab": ""}, Init{Kind: NoInit}},
		"Void":                                {map[string]string{"/etc/runit/core-services/": "", "/etc/fstab": ""}, Init{FstabInit, 0, "/etc/runit"}},
		"Talos":                               {talos, Init{NoInit, 0, "pid 1 is init"}},
		"an empty tree":                       {nil, Init{Kind: NoInit}},
		"/run/systemd/system is no directory": {map[string]string{"/run/systemd/system": "x"}, Init{Kind: NoInit}},
	} {
		if got := DetectInit(newHost(t, tt.host).root); got != tt.want {
			t.Errorf("%s: %+v, want %+v", row, got, tt.want)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for s, want := range map[string]int{
		"252.38-1~deb12u1": 252, "245.4-4ubuntu3.24": 245, "v239": 239, "239 (239-82.el8)": 239, "systemd 219": 219,
		"257": 257, "255.4-1.fc40.so": 255, "252.so": 252, "": 0, "~rc1": 0, "99999999999999999999": 0,
	} {
		if got := parseVersion(s); got != want {
			t.Errorf("parseVersion(%q) = %d, want %d", s, got, want)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add("252.38-1~deb12u1")
	f.Add("systemd v")
	f.Fuzz(func(t *testing.T, s string) {
		if v := parseVersion(s); v < 0 {
			t.Errorf("parseVersion(%q) = %d", s, v)
		}
	})
}
