// Package limit bounds how many connections a server has at once. Everybody on
// the node may connect to some of the runtime's ports; without a limit, who does
// so often enough takes all file descriptors of the process, and with them its
// watches, its way to the API servers, and its netlink sockets.
//
// A connection that comes when the limit is reached is not refused: the oldest
// one that waits for its client is closed instead, of the client that has most of
// them. So a kubelet's probe is answered beside thousands of idle connections.
package limit

import (
	"context"
	"net"
	"net/http"
	"sync"

	"golang.org/x/sys/unix"
)

// usual is the number of descriptors for which the sizes of budgets are given.
// A process that has fewer gets smaller ones.
const usual = 1024

// least is what a budget has at least.
const least = 4

// Descriptors is how many files this process may have open.
func Descriptors() int {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return usual
	}
	return int(min(r.Cur, 1<<20))
}

// Scale is a number of descriptors, or less of them where the process may have
// fewer than 1024.
func Scale(n int) int {
	if d := Descriptors(); d < usual {
		return max(least, n*d/usual)
	}
	return n
}

// Budget is how many connections one server, or several, may have at once.
type Budget struct {
	max int

	mu     sync.Mutex
	conns  map[*conn]bool
	next   uint64
	closed uint64
}

// NewBudget is a budget of max connections, or of less where Scale says so.
func NewBudget(max int) *Budget { return &Budget{max: Scale(max), conns: map[*conn]bool{}} }

// Status is how many connections there are, and how many were closed in favour of others.
func (b *Budget) Status() (open int, closed uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns), b.closed
}

// Apply makes a server tell the budget which of its connections are being answered.
func (b *Budget) Apply(srv *http.Server) {
	handler := srv.Handler
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, key{}, c) }
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(key{}).(*conn); ok {
			b.busy(c, true)
			defer b.busy(c, false)
		}
		handler.ServeHTTP(w, r)
	})
}

type key struct{}

// Listen is a listener whose connections count.
func (b *Budget) Listen(l net.Listener) net.Listener { return &listener{l, b} }

type listener struct {
	net.Listener
	budget *Budget
}

// Accept waits for a connection, and makes place for it.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.budget.add(c), nil
}

type conn struct {
	net.Conn
	budget *Budget
	peer   string
	age    uint64
	busy   bool
}

// Close closes the connection, and gives its place free.
func (c *conn) Close() error {
	c.budget.mu.Lock()
	delete(c.budget.conns, c)
	c.budget.mu.Unlock()
	return c.Conn.Close()
}

func (b *Budget) busy(c *conn, is bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c.busy = is
}

func (b *Budget) add(inner net.Conn) net.Conn {
	c := &conn{Conn: inner, budget: b, peer: peerOf(inner)}
	b.mu.Lock()
	var evicted *conn
	if len(b.conns) >= b.max {
		evicted = b.evictee()
		delete(b.conns, evicted)
		b.closed++
	}
	b.next++
	c.age = b.next
	b.conns[c] = true
	b.mu.Unlock()
	if evicted != nil {
		evicted.Conn.Close()
	}
	return c
}

// evictee is the connection to close: of those that are not being answered, if
// there are any, the oldest one of the peer that has most.
func (b *Budget) evictee() *conn {
	waiting := map[string]int{}
	for c := range b.conns {
		if !c.busy {
			waiting[c.peer]++
		}
	}
	var out *conn
	better := func(a, b *conn) bool {
		switch {
		case a.busy != b.busy:
			return !a.busy
		case !a.busy && waiting[a.peer] != waiting[b.peer]:
			return waiting[a.peer] > waiting[b.peer]
		case !a.busy && a.peer != b.peer:
			return a.peer < b.peer // as many: always the same one's
		}
		return a.age < b.age
	}
	for c := range b.conns {
		if out == nil || better(c, out) {
			out = c
		}
	}
	return out
}

// peerOf is who connects: an address without its port.
func peerOf(c net.Conn) string {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.IP.String()
	}
	return ""
}
