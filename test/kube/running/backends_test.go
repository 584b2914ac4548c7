package running

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/firsthop/firsthop/test/kube/cluster"
	"github.com/firsthop/firsthop/test/standin"
)

// remote are the prefixes of pods elsewhere: all of their addresses are the hub's own.
var remote = []netip.Prefix{netip.MustParsePrefix("10.245.0.0/16"), netip.MustParsePrefix("fd00:245::/64")}

// remoteAddr is an address of them, by family (0: IPv4) and number.
func remoteAddr(family, number int) netip.Addr {
	if family == 0 {
		a := remote[0].Addr().As4()
		a[2], a[3] = byte(number>>8), byte(number)
		return netip.AddrFrom4(a)
	}
	a := remote[1].Addr().As16()
	a[14], a[15] = byte(number>>8), byte(number)
	return netip.AddrFrom16(a)
}

// serveRemote makes the hub have pods elsewhere: every address of theirs answers on the given TCP ports.
func serveRemote(t testing.TB, c *cluster.Cluster, ports ...uint16) {
	t.Helper()
	// An IPv6 socket is bound to an address of an interface only, otherwise.
	if err := c.Hub.Sysctl("net.ipv6.ip_nonlocal_bind", "1"); err != nil {
		t.Fatal(err)
	}
	err := c.Hub.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, p := range remote {
			dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
			route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Type: 2 /* RTN_LOCAL */, Table: 255, Scope: netlink.SCOPE_HOST}
			if p.Addr().Is6() {
				route.Scope = netlink.SCOPE_UNIVERSE
			}
			if err := netlink.RouteReplace(route); err != nil {
				return fmt.Errorf("make %s local: %w", p, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range ports {
		echoTCP(t, c.Hub, netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	}
}

// echoTCP is a backend on a machine; on an unspecified address, it answers at every one of the machine.
func echoTCP(t testing.TB, on standin.Network, addr netip.AddrPort) {
	t.Helper()
	e, err := standin.StartTCPEcho(on, addr.String(), addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
}

func echoUDP(t testing.TB, on standin.Network, addr netip.AddrPort) {
	t.Helper()
	e, err := standin.StartUDPEcho(on, addr.String(), addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
}
