package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// machine is a network namespace: a lab, a pod or a host.
type machine interface {
	Do(fn func() error) error
	Link(fn func(nl *netlink.Handle) error) error
	Sysctl(name, value string) error
	Listen(network, addr string) (net.Listener, error)
	ListenPacket(network, addr string) (net.PacketConn, error)
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
}

// settle sets what would make a machine behave as its distribution wants, and not as this test does.
func settle(t testing.TB, m machine, forwards bool) {
	t.Helper()
	values := map[string]string{
		"net.ipv4.conf.all.rp_filter": "0", "net.ipv4.conf.default.rp_filter": "0",
		"net.ipv6.conf.all.disable_ipv6": "0", "net.ipv6.conf.default.disable_ipv6": "0",
		"net.ipv6.conf.default.accept_dad": "0", // else link-local addresses are of no use for a second
	}
	if forwards {
		values["net.ipv4.ip_forward"], values["net.ipv6.conf.all.forwarding"] = "1", "1"
	}
	for name, value := range values {
		must(t, m.Sysctl(name, value))
	}
}

// cable joins two machines by a veth pair, whose ends are up then.
func cable(t testing.TB, a machine, nameA string, b machine, nameB string) {
	t.Helper()
	var there netns.NsHandle
	must(t, b.Do(func() (err error) { there, err = netns.Get(); return err }))
	defer there.Close()
	must(t, a.Link(func(nl *netlink.Handle) error {
		return nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(int(there))})
	}))
	setUp(t, a, nameA)
	setUp(t, b, nameB)
}

// bridge makes a bridge of devices.
func bridge(t testing.TB, m machine, name string, ports ...string) {
	t.Helper()
	must(t, m.Link(func(nl *netlink.Handle) error {
		return nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}})
	}))
	setUp(t, m, name)
	for _, p := range ports {
		must(t, m.Link(func(nl *netlink.Handle) error {
			port, err := nl.LinkByName(p)
			if err != nil {
				return err
			}
			br, err := nl.LinkByName(name)
			if err != nil {
				return err
			}
			return nl.LinkSetMaster(port, br)
		}))
	}
}

// setUp gives a device addresses, as prefixes, and sets it up.
func setUp(t testing.TB, m machine, name string, prefixes ...string) {
	t.Helper()
	must(t, m.Link(func(nl *netlink.Handle) error {
		dev, err := nl.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		for _, p := range prefixes {
			addr, err := netlink.ParseAddr(p)
			if err != nil {
				return err
			}
			if addr.IP.To4() == nil {
				addr.Flags |= unix.IFA_F_NODAD
			}
			if err := nl.AddrReplace(dev, addr); err != nil {
				return fmt.Errorf("add %s to %s: %w", p, name, err)
			}
		}
		return nl.LinkSetUp(dev)
	}))
}

// route leads a prefix, or everything if it is "default", to a gateway.
func route(t testing.TB, m machine, prefix, gateway string) {
	t.Helper()
	gw := net.ParseIP(gateway)
	if prefix == "default" && gw.To4() != nil {
		prefix = "0.0.0.0/0"
	} else if prefix == "default" {
		prefix = "::/0"
	}
	_, dst, err := net.ParseCIDR(prefix)
	must(t, err)
	must(t, m.Link(func(nl *netlink.Handle) error {
		if err := nl.RouteReplace(&netlink.Route{Dst: dst, Gw: gw}); err != nil {
			return fmt.Errorf("route %s by %s: %w", prefix, gateway, err)
		}
		return nil
	}))
}

func setMTU(t testing.TB, m machine, name string, mtu int) {
	t.Helper()
	must(t, m.Link(func(nl *netlink.Handle) error {
		dev, err := nl.LinkByName(name)
		if err != nil {
			return err
		}
		return nl.LinkSetMTU(dev, mtu)
	}))
}

// indexOf is the index of a device.
func indexOf(t testing.TB, m machine, name string) (index int) {
	t.Helper()
	must(t, m.Link(func(nl *netlink.Handle) error {
		dev, err := nl.LinkByName(name)
		if err == nil {
			index = dev.Attrs().Index
		}
		return err
	}))
	return index
}

// bits is an address as the prefix that has only it.
func bits(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
