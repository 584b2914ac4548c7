package apihealth

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// gate relays TCP to a server, and can freeze: it goes on to accept, and lets
// nothing through, as a server does whose process is stopped.
type gate struct {
	ln     net.Listener
	mu     sync.Mutex
	frozen chan struct{} // closed while it is open
	conns  map[net.Conn]bool
	wg     sync.WaitGroup
}

func (r *rig) gate(at, to string) *gate {
	r.t.Helper()
	ln, err := r.l.Listen("tcp", at)
	if err != nil {
		r.t.Fatal(err)
	}
	g := &gate{ln: ln, frozen: make(chan struct{}), conns: map[net.Conn]bool{}}
	close(g.frozen)
	g.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			g.wg.Go(func() { g.relay(r, conn, to) })
		}
	})
	r.t.Cleanup(func() {
		ln.Close()
		g.thaw()
		g.mu.Lock()
		for c := range g.conns {
			c.Close()
		}
		g.mu.Unlock()
		g.wg.Wait()
	})
	return g
}

func (g *gate) relay(r *rig, conn net.Conn, to string) {
	defer conn.Close()
	far, err := r.l.DialContext(context.Background(), "tcp", to)
	if err != nil {
		return
	}
	defer far.Close()
	g.mu.Lock()
	g.conns[conn], g.conns[far] = true, true
	g.mu.Unlock()
	g.wg.Go(func() { g.copy(far, conn); far.Close() })
	g.copy(conn, far)
	g.mu.Lock()
	delete(g.conns, conn)
	delete(g.conns, far)
	g.mu.Unlock()
}

func (g *gate) copy(to io.Writer, from io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		g.mu.Lock()
		open := g.frozen
		g.mu.Unlock()
		<-open
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (g *gate) freeze() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.frozen = make(chan struct{})
}

func (g *gate) thaw() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.frozen:
	default:
		close(g.frozen)
	}
}

// fullQueue listens at an address, never accepts, and has no room for more.
func (r *rig) fullQueue(at string) (free func()) {
	r.t.Helper()
	a := netip.MustParseAddrPort(at)
	fd := -1
	err := r.l.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}); err != nil {
			return err
		}
		return unix.Listen(fd, 0)
	})
	if err != nil {
		r.t.Fatal("fill the queue of", at, err)
	}
	var conns []net.Conn
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		conn, err := r.l.DialContext(ctx, "tcp", at)
		cancel()
		if err != nil {
			break // the queue is full: SYNs are dropped
		}
		conns = append(conns, conn)
	}
	free = sync.OnceFunc(func() {
		unix.Close(fd)
		for _, c := range conns {
			c.Close()
		}
	})
	r.t.Cleanup(free)
	return free
}
