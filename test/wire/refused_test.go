package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// refused checks that a connection is refused at once, by a reset or, of UDP, by ICMP.
func refused(m machine, network string, to netip.AddrPort) error {
	if network == "tcp" {
		c, err := dial(m, "tcp", fresh(to), to)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("connect to %s: %w, want connection refused", to, err)
		}
		return nil
	}
	c, err := dial(m, network, fresh(to), to)
	if err != nil {
		return err
	}
	defer c.Close()
	return hears(c, unix.ECONNREFUSED)
}

// hears sends datagrams until the socket reports an error.
func hears(c net.Conn, want error) error {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		_, err := c.Write([]byte("hello"))
		if err == nil {
			c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			_, err = c.Read(make([]byte, 100))
		}
		if errors.Is(err, want) {
			return nil
		}
		if !isTimeout(err) {
			return fmt.Errorf("datagram to %s: %w, want %w", c.RemoteAddr(), err, want)
		}
	}
	return fmt.Errorf("datagrams to %s: no error came, want %w", c.RemoteAddr(), want)
}

// silent checks that nothing answers.
func silent(m machine, network string, to netip.AddrPort) error {
	d := net.Dialer{Timeout: 300 * time.Millisecond}
	return m.Do(func() error {
		c, err := d.Dial(network, to.String())
		if err == nil {
			defer c.Close()
			c.SetDeadline(time.Now().Add(d.Timeout))
			c.Write([]byte("hello"))
			_, err = c.Read(make([]byte, 100))
		}
		if !isTimeout(err) {
			return fmt.Errorf("%s to %s: %w, want silence", network, to, err)
		}
		return nil
	})
}

// The ports of Services that this test makes.
const (
	emptyPort  = 8101 // no endpoint at all
	elsewhere  = 8102 // policy Local, endpoints elsewhere only
	limited    = 8103 // for other clients
	unserved   = 8104 // no Service
	closedPort = 8105 // an endpoint whose port nobody listens on; more for other kinds
)

func TestWhatNothingServesIsRefused(t *testing.T) {
	b := newBench(t)
	b.watch(t)
	for _, f := range families {
		for _, p := range protocols {
			b.service(t, []netip.AddrPort{netip.AddrPortFrom(f.vip, emptyPort), netip.AddrPortFrom(f.node, emptyPort)}, p, bpf.FrontendExternal)
			b.service(t, []netip.AddrPort{netip.AddrPortFrom(f.vip, elsewhere)}, p, bpf.FrontendExternal|bpf.FrontendExternalLocal, backend{f.backend(remote), false})
			b.service(t, []netip.AddrPort{netip.AddrPortFrom(f.vip, limited)}, p, bpf.FrontendExternal|bpf.FrontendExternalRange, backend{f.backend(routed), true})
		}
	}
	var all errgroup.Group
	for _, f := range families {
		for _, network := range []string{"tcp", "udp"} {
			for _, m := range []machine{b.client, b.neighbour} {
				for _, to := range []netip.AddrPort{netip.AddrPortFrom(f.vip, emptyPort), netip.AddrPortFrom(f.node, emptyPort), netip.AddrPortFrom(f.vip, unserved),
					netip.AddrPortFrom(f.node, unserved)} { // the last one by the node's own stack
					all.Go(func() error { return refused(m, network, to) })
				}
			}
			for _, port := range []uint16{elsewhere, limited} {
				all.Go(func() error { return silent(b.client, network, netip.AddrPortFrom(f.vip, port)) })
			}
		}
	}
	must(t, all.Wait())
	b.offloads(t, false, setTxChecksum, setRxChecksum)
	for _, f := range families {
		for _, network := range []string{"tcp", "udp"} {
			must(t, refused(b.client, network, netip.AddrPortFrom(f.vip, unserved)))
		}
	}
	for _, c := range []bpf.PacketCount{bpf.CountRejected, bpf.CountNoLocal, bpf.CountSourceRange} {
		if b.count(t, c) == 0 {
			t.Errorf("no packet counts as %s", c)
		}
	}
	if n := b.count(t, bpf.CountRejectFailed); n > 0 {
		t.Errorf("%d packets could not be answered", n)
	}
}

// An endpoint whose port nobody listens on: its own error reaches the client, as one about the Service.
func TestErrorsOfBackendsReachClients(t *testing.T) {
	b := newBench(t)
	b.watch(t)
	to := func(f family, k kind) netip.AddrPort { return netip.AddrPortFrom(f.vip, 100+k.port()) }
	for _, f := range families {
		for _, k := range kinds {
			for _, p := range protocols {
				b.service(t, []netip.AddrPort{to(f, k)}, p, bpf.FrontendExternal, backend{netip.AddrPortFrom(f.backends[k], closedPort), k.local()})
			}
		}
	}
	for _, network := range []string{"tcp", "udp"} {
		must(t, eachKind(func(f family, k kind, _ netip.AddrPort) error { return refused(b.client, network, to(f, k)) }))
	}
}

// As traceroute does: the node says that a packet's time is over, about the packet that the client sent.
func TestErrorsOfRoutersReachClients(t *testing.T) {
	b := newBench(t)
	b.serve(t)
	b.watch(t)
	for _, tc := range []struct {
		name string
		hops int // the client's router is the first, the node the second
	}{{"of the client's router", 1}, {"of the node", 2}} {
		t.Run(tc.name, func(t *testing.T) {
			must(t, eachKind(func(f family, k kind, to netip.AddrPort) error {
				if k == host && tc.hops > 1 {
					return nil // the node is where the packet goes
				}
				c, err := dial(b.client, "udp", fresh(to), to)
				if err != nil {
					return err
				}
				defer c.Close()
				if err := setHops(c, f, tc.hops); err != nil {
					return err
				}
				return hears(c, unix.EHOSTUNREACH)
			}))
		})
	}
}

// setHops sets how far datagrams go, and has errors about that reported.
func setHops(c net.Conn, f family, hops int) error {
	return control(c, func(fd int) error {
		if f.name == v4.name {
			return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, hops), unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
		}
		return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hops), unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
	})
}

// control does something to a connection's socket.
func control(c net.Conn, do func(fd int) error) error {
	raw, err := c.(interface {
		SyscallConn() (syscall.RawConn, error)
	}).SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	return errors.Join(raw.Control(func(fd uintptr) { doErr = do(int(fd)) }), doErr)
}
