package cluster

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// bridge is the hub's interface to all nodes.
const bridge = "fh-lan"

// The prefixes of the LAN, with the hub's addresses in them.
var hubPrefixes = []netip.Prefix{netip.MustParsePrefix("192.168.0.1/24"), netip.MustParsePrefix("fd00:168::1/64")}

// withNetlink opens netlink in a network namespace, given by its path.
func withNetlink(path string, fn func(ns netns.NsHandle, nl *netlink.Handle) error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer ns.Close()
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", path, err)
	}
	defer nl.Close()
	return fn(ns, nl)
}

// makeBridge gives the hub its bridge and makes it a router.
func (c *Cluster) makeBridge() error {
	for name, value := range map[string]string{
		"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1",
		// Nodes reach each other's pods by the hub, which has no need to tell them of a shorter way.
		"net.ipv4.conf.all.send_redirects": "0", "net.ipv4.conf.default.send_redirects": "0",
	} {
		if err := c.Hub.Sysctl(name, value); err != nil {
			return err
		}
	}
	return withNetlink(c.Hub.Netns, func(_ netns.NsHandle, nl *netlink.Handle) error {
		if err := nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}); err != nil {
			return fmt.Errorf("create bridge: %w", err)
		}
		_, err := setUp(nl, bridge, hubPrefixes)
		return err
	})
}

// plug joins a node to the bridge: an interface with the node's addresses, routes to everywhere by the hub, and the
// hub's routes to the node's pods.
func (c *Cluster) plug(n *Node, port string) error {
	return withNetlink(c.Hub.Netns, func(_ netns.NsHandle, hub *netlink.Handle) error {
		return withNetlink(n.Netns, func(ns netns.NsHandle, node *netlink.Handle) error {
			lan, err := hub.LinkByName(bridge)
			if err != nil {
				return err
			}
			pair := &netlink.Veth{
				LinkAttrs:     netlink.LinkAttrs{Name: port, MasterIndex: lan.Attrs().Index},
				PeerName:      "eth0",
				PeerNamespace: netlink.NsFd(int(ns)),
			}
			if err := hub.LinkAdd(pair); err != nil {
				return fmt.Errorf("create veth pair: %w", err)
			}
			if _, err := setUp(hub, port, nil); err != nil {
				return err
			}
			own := []netip.Prefix{netip.PrefixFrom(n.IPs[0], hubPrefixes[0].Bits()), netip.PrefixFrom(n.IPs[1], hubPrefixes[1].Bits())}
			eth0, err := setUp(node, "eth0", own)
			if err != nil {
				return err
			}
			for i := range own {
				err := node.RouteReplace(&netlink.Route{LinkIndex: eth0, Gw: hubPrefixes[i].Addr().AsSlice()})
				if err != nil {
					return fmt.Errorf("add default route: %w", err)
				}
				pods := &net.IPNet{IP: n.Pods[i].Addr().AsSlice(), Mask: net.CIDRMask(n.Pods[i].Bits(), n.Pods[i].Addr().BitLen())}
				err = hub.RouteReplace(&netlink.Route{LinkIndex: lan.Attrs().Index, Dst: pods, Gw: n.IPs[i].AsSlice()})
				if err != nil {
					return fmt.Errorf("route %s: %w", pods, err)
				}
			}
			return nil
		})
	})
}

// setUp gives an interface its addresses, usable at once, sets it up and returns its index.
func setUp(nl *netlink.Handle, name string, addrs []netip.Prefix) (int, error) {
	link, err := nl.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find %s: %w", name, err)
	}
	for _, p := range addrs {
		addr, err := netlink.ParseAddr(p.String())
		if err != nil {
			return 0, err
		}
		if p.Addr().Is6() {
			addr.Flags |= unix.IFA_F_NODAD
		}
		if err := nl.AddrReplace(link, addr); err != nil {
			return 0, fmt.Errorf("add %s to %s: %w", p, name, err)
		}
	}
	return link.Attrs().Index, nl.LinkSetUp(link)
}
