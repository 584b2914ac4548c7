package wire

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

// family are the addresses of one family.
type family struct {
	name                               string
	any                                netip.Prefix
	client, neighbour, neighbourSecond netip.Addr // clients
	vip                                netip.Addr // a load balancer's, that no machine has
	node, nodeSecond, nodeOverlay      netip.Addr // the node's, by device
	router                             netip.Addr
	backends                           map[kind]netip.Addr
}

// kind is where a backend is.
type kind string

// The kinds of backends. Those of the node itself get their clients' addresses.
const (
	routed  kind = "routed"  // a pod with a veth and a route
	bridged kind = "bridged" // a pod behind a bridge
	host    kind = "host"    // a process of the node: hostNetwork
	remote  kind = "remote"  // a pod of the peer, by a route
	overlay kind = "overlay" // a pod of the peer, by VXLAN
	second  kind = "second"  // a pod of the peer, by the second uplink
)

var kinds = []kind{routed, bridged, host, remote, overlay, second}

func (k kind) local() bool { return k == routed || k == bridged || k == host }

// port is the port of a kind's Service at the load balancer's address; nodePort that at the node's.
func (k kind) port() uint16 {
	return map[kind]uint16{routed: 8001, bridged: 8002, host: 8003, remote: 8004, overlay: 8005, second: 8006}[k]
}
func (k kind) nodePort() uint16 { return 22000 + k.port() }

// vxlanPort is flannel's.
const vxlanPort = 8472

// target is the port that backends listen on.
const target = 9090

// nodesOwnPort is that of a server of the node which is no Service's.
const nodesOwnPort = 22

// masqueradePorts are those of the node that packets to backends elsewhere get.
var masqueradePorts = bpf.PacketControl{FirstPort: 61000, Ports: 4000}

var v4 = family{
	name: "IPv4", any: netip.MustParsePrefix("0.0.0.0/0"),
	client: addr("203.0.113.2"), neighbour: addr("198.51.100.100"), neighbourSecond: addr("198.18.2.100"),
	vip: addr("192.0.2.10"), node: addr("198.51.100.11"), nodeSecond: addr("198.18.2.11"), nodeOverlay: addr("10.3.255.11"), router: addr("198.51.100.1"),
	backends: map[kind]netip.Addr{routed: addr("10.1.0.5"), bridged: addr("10.1.1.5"), host: addr("198.51.100.11"),
		remote: addr("10.2.0.5"), overlay: addr("10.3.0.5"), second: addr("10.4.0.5")},
}

var v6 = family{
	name: "IPv6", any: netip.MustParsePrefix("::/0"),
	client: addr("2001:db8:c::2"), neighbour: addr("2001:db8:1::100"), neighbourSecond: addr("2001:db8:2::100"),
	vip: addr("2001:db8:5::10"), node: addr("2001:db8:1::11"), nodeSecond: addr("2001:db8:2::11"), nodeOverlay: addr("fd00:3:ff::11"), router: addr("2001:db8:1::1"),
	backends: map[kind]netip.Addr{routed: addr("fd00:1::5"), bridged: addr("fd00:1:1::5"), host: addr("2001:db8:1::11"),
		remote: addr("fd00:2::5"), overlay: addr("fd00:3::5"), second: addr("fd00:4::5")},
}

var families = []family{v4, v6}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// backend is where the Service of a kind leads to.
func (f family) backend(k kind) netip.AddrPort { return netip.AddrPortFrom(f.backends[k], target) }

// frontend is the load balancer's address and port of a kind.
func (f family) frontend(k kind) netip.AddrPort { return netip.AddrPortFrom(f.vip, k.port()) }

// frontends are all addresses and ports of a kind: the load balancer's, and node ports.
func (f family) frontends(k kind) []netip.AddrPort {
	return []netip.AddrPort{f.frontend(k), netip.AddrPortFrom(f.node, k.nodePort()), netip.AddrPortFrom(f.nodeSecond, k.nodePort())}
}

// source is the node's address that packets to a backend elsewhere get.
func (f family) source(k kind) netip.Addr {
	return map[kind]netip.Addr{remote: f.node, overlay: f.nodeOverlay, second: f.nodeSecond}[k]
}

// bench is a node with what is around it.
type bench struct {
	node                            *lab.Lab
	router, client, neighbour, peer *lab.Host
	routed                          *lab.Pod
	bridged                         *lab.Host

	*table
	*uplinks

	masquerades atomic.Bool // the rules of netfilter masquerade what goes to backends elsewhere
}

// newBench makes a bench that goes with the test, with Services, and with programs at the uplinks.
func newBench(t testing.TB) *bench {
	t.Helper()
	b := newTopology(t)
	b.table = newTable(t, b)
	b.uplinks = newUplinks(t, b, haveTCX())
	b.attach(t)
	return b
}

// newTopology makes the machines and what joins them.
func newTopology(t testing.TB) *bench {
	t.Helper()
	b := &bench{node: lab.New(t)}
	settle(t, b.node, true)
	must(t, b.node.Sysctl("net.ipv4.ip_local_port_range", "32768 60999"))
	for _, h := range []struct {
		at       **lab.Host
		name     string
		forwards bool
	}{{&b.router, "router", true}, {&b.client, "client", false}, {&b.neighbour, "neighbour", false}, {&b.peer, "peer", true}, {&b.bridged, "bridged", false}} {
		var err error
		*h.at, err = b.node.AddHost(h.name)
		must(t, err)
		settle(t, *h.at, h.forwards)
	}
	b.joinOutside(t)
	b.joinPeer(t)
	b.joinPods(t)
	return b
}

// joinOutside joins node, router and clients.
func (b *bench) joinOutside(t testing.TB) {
	cable(t, b.client, "eth0", b.router, "client")
	setUp(t, b.client, "eth0", "203.0.113.2/24", "2001:db8:c::2/64")
	setUp(t, b.router, "client", "203.0.113.1/24", "2001:db8:c::1/64")
	cable(t, b.node, "eth0", b.router, "node")
	cable(t, b.peer, "eth0", b.router, "peer")
	cable(t, b.neighbour, "eth0", b.router, "neighbour")
	bridge(t, b.router, "segment", "node", "peer", "neighbour")
	setUp(t, b.router, "segment", "198.51.100.1/24", "2001:db8:1::1/64")
	setUp(t, b.node, "eth0", "198.51.100.11/24", "2001:db8:1::11/64")
	setUp(t, b.peer, "eth0", "198.51.100.12/24", "2001:db8:1::12/64")
	setUp(t, b.neighbour, "eth0", "198.51.100.100/24", "2001:db8:1::100/64")
	cable(t, b.node, "eth1", b.router, "node1")
	cable(t, b.peer, "eth1", b.router, "peer1")
	cable(t, b.neighbour, "eth1", b.router, "neighbour1")
	bridge(t, b.router, "segment1", "node1", "peer1", "neighbour1")
	setUp(t, b.router, "segment1", "198.18.2.1/24", "2001:db8:2::1/64")
	setUp(t, b.node, "eth1", "198.18.2.11/24", "2001:db8:2::11/64")
	setUp(t, b.peer, "eth1", "198.18.2.12/24", "2001:db8:2::12/64")
	setUp(t, b.neighbour, "eth1", "198.18.2.100/24", "2001:db8:2::100/64")
	for _, gw := range []string{"203.0.113.1", "2001:db8:c::1"} {
		route(t, b.client, "default", gw)
	}
	for _, gw := range []string{"198.51.100.1", "2001:db8:1::1"} {
		for _, m := range []machine{b.node, b.peer, b.neighbour} {
			route(t, m, "default", gw)
		}
	}
	for _, f := range families {
		for _, m := range []machine{b.router, b.neighbour} {
			route(t, m, bits(f.vip), f.node.String())
		}
	}
}

// joinPeer makes the peer's pods, which are addresses of its own, and the ways to them.
func (b *bench) joinPeer(t testing.TB) {
	for _, end := range []struct {
		machine
		own, other, inner4, inner6 string
	}{{b.node, "198.51.100.11", "198.51.100.12", "10.3.255.11/24", "fd00:3:ff::11/64"},
		{b.peer, "198.51.100.12", "198.51.100.11", "10.3.255.12/24", "fd00:3:ff::12/64"}} {
		must(t, end.Link(func(nl *netlink.Handle) error {
			eth0, err := nl.LinkByName("eth0")
			if err != nil {
				return err
			}
			return nl.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "flannel.1", MTU: 1450}, VxlanId: 1, VtepDevIndex: eth0.Attrs().Index,
				SrcAddr: net.ParseIP(end.own), Group: net.ParseIP(end.other), Port: vxlanPort, UDPCSum: true})
		}))
		setUp(t, end.machine, "flannel.1", end.inner4, end.inner6)
	}
	for _, f := range families {
		for _, k := range []kind{remote, overlay, second} {
			setUp(t, b.peer, "lo", bits(f.backends[k]))
		}
	}
	for _, r := range [][2]string{{"10.2.0.0/24", "198.51.100.12"}, {"fd00:2::/64", "2001:db8:1::12"}, {"10.3.0.0/24", "10.3.255.12"}, {"fd00:3::/64", "fd00:3:ff::12"},
		{"10.4.0.0/24", "198.18.2.12"}, {"fd00:4::/64", "2001:db8:2::12"}} {
		route(t, b.node, r[0], r[1])
	}
}

// joinPods makes the pods of the node.
func (b *bench) joinPods(t testing.TB) {
	var err error
	b.routed, err = b.node.AddPod("routed", v4.backends[routed], v6.backends[routed])
	must(t, err)
	cable(t, b.bridged, "eth0", b.node, "veth0")
	bridge(t, b.node, "cni0", "veth0")
	setUp(t, b.node, "cni0", "10.1.1.1/24", "fd00:1:1::1/64")
	setUp(t, b.bridged, "eth0", "10.1.1.5/24", "fd00:1:1::5/64")
	for _, gw := range []string{"10.1.1.1", "fd00:1:1::1"} {
		route(t, b.bridged, "default", gw)
	}
}

// at is the machine that has the backend of a kind.
func (b *bench) at(k kind) machine {
	switch k {
	case routed:
		return b.routed
	case bridged:
		return b.bridged
	case host:
		return b.node
	}
	return b.peer
}
