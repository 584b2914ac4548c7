package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link runs fn with netlink of the lab's network namespace.
func (l *Lab) Link(fn func(nl *netlink.Handle) error) error { return fn(l.nl) }

// AddAddr gives addresses, as prefixes, to the lab's loopback: a server can listen there at once.
func (l *Lab) AddAddr(prefixes ...string) error {
	return l.eachAddr(prefixes, func(lo netlink.Link, addr *netlink.Addr) error {
		return errors.Join(l.nl.AddrReplace(lo, addr), awaitLocal(l.nl, addr))
	})
}

// awaitLocal waits until an address, on an interface that is up, is one of this host's. Without duplicate address
// detection, too, the kernel enters the local route of an IPv6 address in work of its own (addrconf_dad_work), which waits
// for the lock that all namespaces share. Until then a SYN to it finds its way out, but not in.
func awaitLocal(nl *netlink.Handle, addr *netlink.Addr) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := nl.RouteGet(addr.IP)
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("address %s doesn't become local: routes are %v", addr, routes), err)
		}
	}
}

// DelAddr takes addresses away again: connections to them find no route, or the one of Drop or Unreachable.
func (l *Lab) DelAddr(prefixes ...string) error {
	return l.eachAddr(prefixes, l.nl.AddrDel)
}

func (l *Lab) eachAddr(prefixes []string, change func(netlink.Link, *netlink.Addr) error) error {
	lo, err := l.nl.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, p := range prefixes {
		addr, err := parseAddr(p)
		if err != nil {
			return err
		}
		if err := change(lo, addr); err != nil {
			return fmt.Errorf("change address %s on lo: %w", p, err)
		}
	}
	return nil
}

// parseAddr reads a prefix as an address that is usable at once: without duplicate address detection.
func parseAddr(s string) (*netlink.Addr, error) {
	addr, err := netlink.ParseAddr(s)
	if err != nil {
		return nil, fmt.Errorf("parse address %q: %w", s, err)
	}
	if addr.IP.To4() == nil {
		addr.Flags |= unix.IFA_F_NODAD
	}
	return addr, nil
}

// Unreachable makes a connect to a prefix fail at once with EHOSTUNREACH. An address of the lab's loopback must be
// taken away first: the local routing table comes before this one.
func (l *Lab) Unreachable(prefix string) error {
	dst, err := parseNet(prefix)
	if err != nil {
		return err
	}
	route := &netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE, Table: unix.RT_TABLE_MAIN}
	if dst.IP.To4() == nil {
		route.Family = unix.AF_INET6
	}
	if err := l.nl.RouteReplace(route); err != nil {
		return fmt.Errorf("make %s unreachable: %w", prefix, err)
	}
	return nil
}

// dropDevice swallows every packet. It is a veth pair, both ends in the lab, because some kernels have no dummy
// interfaces: without ARP, a packet carries the sender's own hardware address, so the other end takes it for a
// unknown sender's and discards it.
const dropDevice = "fhdrop"

// Drop makes packets to a prefix vanish without an answer, as a host that has lost power does: a connect waits. An
// address of the lab's loopback must be taken away first: the local routing table comes before this one.
func (l *Lab) Drop(prefix string) error {
	dst, err := parseNet(prefix)
	if err != nil {
		return err
	}
	link, err := l.ensureDropDevice()
	if err != nil {
		return err
	}
	if err := l.nl.RouteReplace(&netlink.Route{Dst: dst, LinkIndex: link.Attrs().Index}); err != nil {
		return fmt.Errorf("drop packets to %s: %w", prefix, err)
	}
	return nil
}

// Undrop takes back what Drop or Unreachable did.
func (l *Lab) Undrop(prefix string) error {
	dst, err := parseNet(prefix)
	if err != nil {
		return err
	}
	// The kernel finds the route by its destination, whatever its type, but asks for the type when it has none.
	for _, route := range []*netlink.Route{{Dst: dst}, {Dst: dst, Type: unix.RTN_UNREACHABLE}} {
		if err = l.nl.RouteDel(route); err == nil {
			return nil
		}
	}
	return fmt.Errorf("undrop %s: %w", prefix, err)
}

func (l *Lab) ensureDropDevice() (netlink.Link, error) {
	link, err := l.nl.LinkByName(dropDevice)
	if err == nil {
		return link, nil
	}
	var notFound netlink.LinkNotFoundError
	if !errors.As(err, &notFound) {
		return nil, err
	}
	const peer = dropDevice + "-peer"
	if err := l.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: dropDevice}, PeerName: peer}); err != nil {
		return nil, fmt.Errorf("create veth pair: %w", err)
	}
	for _, name := range []string{peer, dropDevice} {
		if link, err = l.nl.LinkByName(name); err != nil {
			return nil, err
		}
		if err := l.nl.LinkSetARPOff(link); err != nil {
			return nil, err
		}
		if err := l.nl.LinkSetUp(link); err != nil {
			return nil, err
		}
	}
	// A route through a device without any address could leave a connection without a source address. These are the
	// dummy addresses of RFC 7600 and RFC 6666.
	for _, s := range []string{"192.0.0.8/32", "100::1/128"} {
		addr, err := parseAddr(s)
		if err != nil {
			return nil, err
		}
		if err := l.nl.AddrReplace(link, addr); err != nil {
			return nil, err
		}
	}
	return link, nil
}

// parseNet reads a prefix, or an address as the prefix that holds only it.
func parseNet(s string) (*net.IPNet, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, addrErr := netip.ParseAddr(s)
		if addrErr != nil {
			return nil, err
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, nil
}
