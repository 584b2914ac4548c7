package lab_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/lab"
	"golang.org/x/sys/unix"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func output(t *testing.T, cmd *lab.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestCommandRunsInTheLabsNamespaceAndCgroup(t *testing.T) {
	l := lab.New(t)
	ctx := testContext(t)

	if got := output(t, l.Command(ctx, "cat", "/proc/self/cgroup")); !strings.Contains(got, "0::/"+l.Name) {
		t.Errorf("the process is in cgroup %q, want /%s", got, l.Name)
	}
	var st unix.Stat_t
	if err := unix.Stat(l.Netns, &st); err != nil {
		t.Fatal(err)
	}
	ns := output(t, l.Command(ctx, "stat", "-L", "-c", "%i", "/proc/self/ns/net"))
	if want := output(t, l.Command(ctx, "stat", "-L", "-c", "%i", l.Netns)); ns != want {
		t.Errorf("the process is in network namespace %s, want %s", ns, want)
	}
	if got := output(t, l.Command(ctx, "cat", "/proc/net/dev")); strings.Count(got, ":") != 1 || !strings.Contains(got, "lo:") {
		t.Errorf("the namespace has more than a loopback:\n%s", got)
	}
}

func TestLabLeavesTheTestProcess(t *testing.T) {
	before, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	l := lab.New(t)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("Do swallowed a panic")
			}
		}()
		_ = l.Do(func() error { panic("on purpose") })
	}()
	for range 20 {
		after, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		if after != before {
			t.Fatalf("the thread is in %s, was in %s", after, before)
		}
	}
	if main, err := os.Readlink("/proc/self/ns/net"); err != nil || main != before {
		t.Errorf("the process is in %s (%v), was in %s", main, err, before)
	}
}

func TestLabHasItsOwnBPFFS(t *testing.T) {
	l := lab.New(t)
	var st unix.Statfs_t
	if err := unix.Statfs(l.BPFFS, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		t.Errorf("%s has magic %#x, want that of a bpffs", l.BPFFS, st.Type)
	}

	without := lab.New(t, lab.WithoutBPFFS())
	if _, err := os.Stat(without.BPFFS); !os.IsNotExist(err) {
		t.Errorf("%s is there without having been asked for: %v", without.BPFFS, err)
	}
}

func TestLabSocketsConnectWithinOnly(t *testing.T) {
	l := lab.New(t)
	ctx := testContext(t)
	if err := l.AddAddr("192.0.2.11/32", "2001:db8::11/128"); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"192.0.2.11:6443", "[2001:db8::11]:6443", "127.0.0.1:6443", "[::1]:6443"} {
		ln, err := l.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		conn, err := l.DialContext(ctx, "tcp", addr)
		if err != nil {
			t.Errorf("dial %s inside the lab: %v", addr, err)
			continue
		}
		conn.Close()
		if conn, err := net.DialTimeout("tcp", addr, 100*time.Millisecond); err == nil {
			conn.Close()
			t.Errorf("dial %s from outside of the lab succeeded", addr)
		}
	}
}

func TestDeadEndpoints(t *testing.T) {
	l := lab.New(t)
	for name, tc := range map[string]struct {
		addr  string
		setUp func(string) error
		want  error
	}{
		"an unreachable IPv4 address fails at once": {"192.0.2.20", l.Unreachable, unix.EHOSTUNREACH},
		"an unreachable IPv6 address fails at once": {"2001:db8::20", l.Unreachable, unix.EHOSTUNREACH},
		"a dropped IPv4 address never answers":      {"192.0.2.21", l.Drop, context.DeadlineExceeded},
		"a dropped IPv6 address never answers":      {"2001:db8::21", l.Drop, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tc.setUp(tc.addr); err != nil {
				t.Fatal(err)
			}
			addr := net.JoinHostPort(tc.addr, "443")
			if err := dialError(t, l, addr); !isTimeoutOr(err, tc.want) {
				t.Errorf("dial %s: %v, want %v", addr, err, tc.want)
			}
			if err := l.Undrop(tc.addr); err != nil {
				t.Fatal(err)
			}
			if err := dialError(t, l, addr); !isTimeoutOr(err, unix.ENETUNREACH) {
				t.Errorf("dial %s after Undrop: %v, want %v", addr, err, unix.ENETUNREACH)
			}
		})
	}
}

func dialError(t *testing.T, l *lab.Lab, addr string) error {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	conn, err := l.DialContext(ctx, "tcp", addr)
	if err == nil {
		conn.Close()
	}
	return err
}

func isTimeoutOr(err, want error) bool {
	if netErr, ok := err.(net.Error); want == context.DeadlineExceeded {
		return ok && netErr.Timeout()
	}
	return err != nil && strings.Contains(err.Error(), want.Error())
}

func TestPodsReachLabAndEachOther(t *testing.T) {
	l := lab.New(t)
	ctx := testContext(t)
	if err := l.AddAddr("192.0.2.11/32", "2001:db8::11/128"); err != nil {
		t.Fatal(err)
	}
	a, err := l.AddPod("a", netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:1::1"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.AddPod("b", netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8:1::2"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, addr string
		listen     func(network, addr string) (net.Listener, error)
		wantPeer   string
	}{
		{"a pod reaches the node over IPv4", "192.0.2.11:80", l.Listen, "198.51.100.1"},
		{"a pod reaches the node over IPv6", "[2001:db8::11]:80", l.Listen, "2001:db8:1::1"},
		{"a pod reaches a pod over IPv4", "198.51.100.2:80", b.Listen, "198.51.100.1"},
		{"a pod reaches a pod over IPv6", "[2001:db8:1::2]:80", b.Listen, "2001:db8:1::1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ln, err := tc.listen("tcp", tc.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			conn, err := a.DialContext(ctx, "tcp", tc.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			peer, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			if got, _, _ := net.SplitHostPort(peer.RemoteAddr().String()); got != tc.wantPeer {
				t.Errorf("the server sees %s, want %s", got, tc.wantPeer)
			}
		})
	}
	if got := output(t, a.Command(ctx, "cat", "/proc/self/cgroup")); !strings.Contains(got, "0::/"+l.Name+"/a") {
		t.Errorf("the pod's process is in cgroup %q", got)
	}
}

func TestCloseRemovesEverything(t *testing.T) {
	lab.VerifyNoLeaks(t)
	l := lab.New(t)
	cmd := l.Command(t.Context(), "sh", "-c", "echo started; sleep 1000 & sleep 1000")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stdout, make([]byte, len("started"))); err != nil {
		t.Fatal(err)
	}
	nested := filepath.Join(l.BPFFS, "nested")
	if err := os.Mkdir(nested, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", nested, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := l.NewCgroup("child"); err != nil {
		t.Fatal(err)
	}

	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process ended well, want it killed")
	}
	for _, path := range []string{l.Dir, l.Netns, l.Cgroup} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if err := l.Command(t.Context(), "true").Run(); err == nil {
		t.Error("a closed lab starts processes")
	}
}

func TestCloseKeepsForeignMounts(t *testing.T) {
	l := lab.New(t)
	precious := t.TempDir()
	file := filepath.Join(precious, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	bound := filepath.Join(l.Dir, "a name with blanks")
	if err := os.Mkdir(bound, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 { // stacked
		if err := unix.Mount(precious, bound, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(l.Dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", l.Dir, err)
	}
}
