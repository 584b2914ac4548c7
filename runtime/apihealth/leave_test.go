package apihealth

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A server that is ready by its own word, and answers nothing that can be used, would keep its clients indefinitely.
func TestLeaveClosesConnectionsToAServerOfNoUse(t *testing.T) {
	r := newRig(t)
	for _, at := range []string{a1, a2, a3} {
		r.serve(at)
	}
	r.run().SetEndpoints(addrs(a1, a2, a3))
	r.await(a1, a2, a3)
	d := r.dialer(DialerConfig{})
	at := a1
	left := map[string]bool{}
	for range 2 {
		conn, err := d.DialContext(t.Context(), "tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		from := conn.RemoteAddr().String()
		if left[from] {
			t.Fatalf("%s was left and is dialled again, while others live", from)
		}
		left[from] = true
		d.Leave()
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the connection to %s ended with %v", from, err)
		}
	}
	last, err := d.DialContext(t.Context(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	to := last.RemoteAddr().String()
	if left[to] {
		t.Errorf("%s was left and is dialled again, while another lives", to)
	}
	d.Leave() // all others were left just before: moving is of no use
	if err := last.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := last.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("the connection to the last server ended with %v", err)
	}
	d.mu.Lock()
	for a := range d.left {
		d.left[a] = time.Now().Add(-leaveTime)
	}
	d.mu.Unlock()
	if got := reached(t, d, a1); got != a1 {
		t.Errorf("reached %s, though the time to pass %s by is over", got, a1)
	}
	if n := strings.Count(r.logs.String(), "another one is asked"); n != 2 {
		t.Errorf("the log says %d times that a server is left, want 2", n)
	}
}

// Where all servers are left but the dead, those that were left are dialled.
func TestLeaveKeepsServersAsALastResort(t *testing.T) {
	r := newRig(t)
	r.serve(a1)
	second := r.serve(a2)
	r.run().SetEndpoints(addrs(a1, a2))
	r.await(a1, a2)
	d := r.dialer(DialerConfig{})
	conn, err := d.DialContext(t.Context(), "tcp", a1)
	if err != nil {
		t.Fatal(err)
	}
	d.Leave()
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the connection ended with %v", err)
	}
	second.Close()
	if got := reached(t, d, a1); got != a1 {
		t.Errorf("reached %s", got)
	}
	if !d.hasLeft(netip.MustParseAddrPort(a1), time.Now()) {
		t.Error("it is forgotten that the server was left")
	}
}

// A server that gives no answer is not left: when it lives again it may be the one that answers well.
func TestLeaveIgnoresADeadServer(t *testing.T) {
	r := newRig(t)
	r.serve(a1)
	dead := r.serve(a2)
	r.run().SetEndpoints(addrs(a1, a2))
	r.await(a1, a2)
	d := r.dialer(DialerConfig{})
	for _, at := range []string{a1, a2} {
		conn, err := d.DialContext(t.Context(), "tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	dead.Close()
	r.await(a1)
	d.Leave()
	if d.hasLeft(netip.MustParseAddrPort(a2), time.Now()) || d.hasLeft(netip.MustParseAddrPort(a1), time.Now()) {
		t.Errorf("left are %v", d.left)
	}
	r.serve(a2)
	r.await(a1, a2)
	d.Leave()
	if got := reached(t, d, a1); got != a2 {
		t.Errorf("reached %s", got)
	}
}
