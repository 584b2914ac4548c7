package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// narrow is an MTU that is smaller than what both ends believe in. IPv6 allows it.
const narrow = 1300

// A router between client and node has a smaller MTU on the way to the client: its errors, to the Service's address, reach
// the backend, and bulk continues.
func TestPathMTUTowardsClients(t *testing.T) {
	b := newBench(t)
	b.serve(t)
	b.watch(t)
	setMTU(t, b.router, "client", narrow)
	sizes := sniff(t, "the client", b.client, "eth0", func(f frame) error {
		if !f.out && f.size > narrow && f.proto == unix.IPPROTO_TCP {
			return fmt.Errorf("%d bytes came through a device with an MTU of %d", f.size, narrow)
		}
		return nil
	})
	b.offloads(t, false, setTSO, setGRO)
	must(t, eachKind(func(_ family, _ kind, to netip.AddrPort) error { return download(b.client, to, 1<<20) }))
	must(t, eachKind(func(_ family, _ kind, to netip.AddrPort) error { return tryUntilAnswered(b.client, to, askLong(1400)) }))
	if frames, _ := sizes.seen(); frames == 0 {
		t.Error("nothing was captured")
	}
}

// The way from the node to backends has a smaller MTU: the client learns it of the Service.
func TestPathMTUTowardsBackends(t *testing.T) {
	b := newBench(t)
	b.serve(t)
	b.watch(t)
	setMTU(t, b.node, "fh-routed", narrow)
	setMTU(t, b.node, "veth0", narrow)
	setMTU(t, b.node, "cni0", narrow)
	for _, dst := range []string{"10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/24", "fd00:2::/64", "fd00:3::/64", "fd00:4::/64"} {
		setRouteMTU(t, b.node, dst, narrow)
	}
	b.offloads(t, false, setTSO, setGRO)
	narrowed := func(try func(f family, k kind, to netip.AddrPort) error) error {
		return eachKind(func(f family, k kind, to netip.AddrPort) error {
			if k == host {
				return nil // no packet leaves the node for it
			}
			return try(f, k, to)
		})
	}
	must(t, narrowed(func(_ family, _ kind, to netip.AddrPort) error { return upload(b.client, to, 1<<20) }))
	must(t, narrowed(func(f family, k kind, to netip.AddrPort) error {
		c, err := dial(b.neighbour, "udp", fresh(to), to)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := neverFragment(c, f); err != nil {
			return err
		}
		return tooLarge(c, 1400)
	}))
}

// tooLarge sends datagrams until the socket refuses, as it knows the path's MTU.
func tooLarge(c net.Conn, size int) error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err := c.Write(make([]byte, size)); errors.Is(err, unix.EMSGSIZE) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return fmt.Errorf("datagrams of %d bytes to %s are not too large", size, c.RemoteAddr())
}

// neverFragment has datagrams that are too large refused.
func neverFragment(c net.Conn, f family) error {
	return control(c, func(fd int) error {
		if f.name == v4.name {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		}
		return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO), unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1))
	})
}

// setRouteMTU gives a route an MTU of its own.
func setRouteMTU(t testing.TB, m machine, prefix string, mtu int) {
	t.Helper()
	_, dst, err := net.ParseCIDR(prefix)
	must(t, err)
	must(t, m.Link(func(nl *netlink.Handle) error {
		family := netlink.FAMILY_V6
		if dst.IP.To4() != nil {
			family = netlink.FAMILY_V4
		}
		routes, err := nl.RouteListFiltered(family, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
		if err != nil || len(routes) != 1 {
			return fmt.Errorf("routes to %s: %v, %w", prefix, routes, err)
		}
		r := routes[0]
		r.MTU = mtu
		return nl.RouteReplace(&r)
	}))
}
