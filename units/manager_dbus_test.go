package units

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A socket on which nobody answers costs the handshake's time and no more, and
// the files are used.
func TestOpenSocketThatDoesNotAnswer(t *testing.T) {
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
func TestOpenSocketWithALongPath(t *testing.T) {
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
