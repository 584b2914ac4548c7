package limit

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/lab"
)

// serve is a server with a budget; handle may block.
func serve(t *testing.T, b *Budget, handle http.HandlerFunc) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: handle}
	b.Apply(srv)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(b.Listen(l)) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return l.Addr().String()
}

// dial connects from an address of the loopback network.
func dial(t *testing.T, from, to string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: time.Minute}
	c, err := d.DialContext(t.Context(), "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// isOpen reports whether the server has not closed a connection.
func isOpen(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

func get(t *testing.T, c net.Conn) {
	t.Helper()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
}

func awaitOpen(t *testing.T, b *Budget, n int) {
	t.Helper()
	lab.Await(t, fmt.Sprint(n, " connections are open"), func() bool { open, _ := b.Status(); return open == n })
}

func TestBudgetClosesTheOldestOfTheBusiestClient(t *testing.T) {
	b := NewBudget(4)
	addr := serve(t, b, func(http.ResponseWriter, *http.Request) {})
	kubelet := dial(t, "127.0.0.2", addr) // the oldest of all, but the only one of its address
	awaitOpen(t, b, 1)
	var flood []net.Conn
	for i := range 40 {
		flood = append(flood, dial(t, "127.0.0.3", addr))
		want := uint64(max(0, i-2))
		lab.Await(t, "it is counted", func() bool { open, closed := b.Status(); return closed == want && open == min(4, i+2) })
	}
	if !isOpen(kubelet) {
		t.Error("the connection of another client was closed")
	}
	get(t, kubelet)
	for i, c := range flood {
		if want := i >= len(flood)-3; isOpen(c) != want {
			t.Errorf("connection %d of the flood is open: %v", i, !want)
		}
	}
	get(t, dial(t, "127.0.0.4", addr)) // and a new one is answered
}

func TestBudgetKeepsConnectionsBeingAnswered(t *testing.T) {
	b := NewBudget(4)
	gate := make(chan struct{})
	addr := serve(t, b, func(http.ResponseWriter, *http.Request) { <-gate })
	asking := dial(t, "127.0.0.3", addr)
	fmt.Fprint(asking, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	lab.Await(t, "it is being answered", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		for c := range b.conns {
			if c.busy {
				return true
			}
		}
		return false
	})
	for range 20 {
		dial(t, "127.0.0.3", addr)
	}
	lab.Await(t, "the others were closed", func() bool { _, closed := b.Status(); return closed == 17 })
	close(gate)
	_ = asking.SetReadDeadline(time.Now().Add(time.Minute))
	if resp, err := http.ReadResponse(bufio.NewReader(asking), nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("no answer: %v", err)
	}
}

func TestBudgetIsReleased(t *testing.T) {
	b := NewBudget(4)
	addr := serve(t, b, func(http.ResponseWriter, *http.Request) {})
	for range 10 {
		dial(t, "127.0.0.3", addr).Close()
	}
	awaitOpen(t, b, 0)
}
