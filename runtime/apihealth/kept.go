package apihealth

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
)

// kept are the dialer's open connections, by where they lead. A client on a
// server that hangs would notice it by HTTP/2's own questions only, after 45 s,
// and follow nothing until then: when a server is lost, its connections are
// closed, and the client dials another.
type kept struct {
	mu    sync.Mutex
	conns map[*keptConn]bool
}

type keptConn struct {
	net.Conn
	of *kept
	to netip.AddrPort
}

func (k *kept) add(conn net.Conn, to netip.AddrPort) net.Conn {
	c := &keptConn{Conn: conn, of: k, to: to}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conns == nil {
		k.conns = map[*keptConn]bool{}
	}
	k.conns[c] = true
	return c
}

// Close forgets the connection.
func (c *keptConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// SyscallConn is that of the connection.
func (c *keptConn) SyscallConn() (syscall.RawConn, error) {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return sc.SyscallConn()
}

// drop closes all connections to an address, and returns how many there were.
func (k *kept) drop(to netip.AddrPort) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.conns {
		if c.to == to {
			delete(k.conns, c)
			c.Conn.Close() // its owner closes it again
			n++
		}
	}
	return n
}

// open are the addresses that connections lead to.
func (k *kept) open() []netip.AddrPort {
	k.mu.Lock()
	defer k.mu.Unlock()
	to := map[netip.AddrPort]bool{}
	for c := range k.conns {
		to[c.to] = true
	}
	return slices.Collect(maps.Keys(to))
}

// Lost tells that an endpoint does not answer any more: connections to it are closed.
func (d *Dialer) Lost(endpoint netip.AddrPort) {
	if n := d.kept.drop(endpoint); n > 0 {
		d.cfg.Log.Info("connections to a lost API server are closed", "endpoint", endpoint, "connections", n)
	}
}

// keep keeps a new connection in mind.
func (d *Dialer) keep(conn net.Conn) net.Conn {
	to, ok := netip.AddrPort{}, false
	if d.cfg.Peer != nil {
		to, ok = d.cfg.Peer(conn)
	}
	if !ok {
		tcp, isTCP := conn.RemoteAddr().(*net.TCPAddr)
		if !isTCP {
			return conn
		}
		to = tcp.AddrPort()
	}
	return d.kept.add(conn, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
}
