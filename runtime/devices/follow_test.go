package devices

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/lab"
)

const workloadReason = "device of a workload: no default route and no route by a gateway or to another node uses it"

func TestRunFollowsAddressesAndRoutes(t *testing.T) {
	r := newRig(t)
	s := r.follow(Names{})
	s.await("nothing", "")
	r.veth("eth0")
	r.addr("eth0", "192.0.2.11/24")
	s.await("an address is not enough for a veth", "-eth0: "+workloadReason)
	s.SetNode("node-b", []netip.Addr{netip.MustParseAddr("192.0.2.12")})
	s.await("another node comes", "eth0: route to another node")
	r.route("default", "eth0", via("192.0.2.1"))
	s.await("a default route comes", "eth0: default route")
	s.awaitSources("one address", "eth0", "0.0.0.0/0 192.0.2.11")
	r.addr("eth0", "2001:db8::11/64")
	s.awaitSources("IPv6 comes", "eth0", "0.0.0.0/0 192.0.2.11\n::/0 2001:db8::11")
	r.route("10.0.0.0/8", "eth0", func(route *netlink.Route) { via("192.0.2.1")(route); route.Src = net.ParseIP("192.0.2.11") })
	r.addr("eth0", "192.0.2.99/32")
	r.route("11.0.0.0/8", "eth0", func(route *netlink.Route) { via("192.0.2.1")(route); route.Src = net.ParseIP("192.0.2.99") })
	s.awaitSources("a route with a source", "eth0", "11.0.0.0/8 192.0.2.99\n0.0.0.0/0 192.0.2.11\n::/0 2001:db8::11")
	r.delAddr("eth0", "192.0.2.99/32") // takes the route along, silently
	s.awaitSources("the source goes", "eth0", "0.0.0.0/0 192.0.2.11\n::/0 2001:db8::11")
	r.delRoute("default", "eth0")
	s.await("the default route goes", "eth0: route to another node")
	r.delRoute("10.0.0.0/8", "eth0")
	s.SetNode("node-b", nil)
	s.await("the other node goes", "-eth0: "+workloadReason)
}

func TestRunFollowsDevices(t *testing.T) {
	r, other := newRig(t), newRig(t)
	s := r.follow(Names{Exclude: []string{"secret*"}})
	r.vxlan("wan0", 1)
	s.await("a device without an address", "")
	r.addr("wan0", "192.0.2.11/24")
	s.await("an address comes", "wan0: address of the node")
	first := r.index("wan0")
	r.down("wan0")
	r.do(func(nl *netlink.Handle) error { return nl.LinkSetName(r.link("wan0"), "wan1") })
	s.await("renamed", "wan1: address of the node")
	r.up("wan1")
	r.do(func(nl *netlink.Handle) error {
		r.down("wan1")
		return nl.LinkSetName(r.link("wan1"), "secret1")
	})
	s.await("renamed to what is excluded", "-secret1: excluded by the configuration")
	r.do(func(nl *netlink.Handle) error { return nl.LinkSetName(r.link("secret1"), "wan1") })
	s.await("and back", "wan1: address of the node")

	away, err := os.Open(other.l.Netns)
	must(t, err)
	defer away.Close()
	r.do(func(nl *netlink.Handle) error { return nl.LinkSetNsFd(r.link("wan1"), int(away.Fd())) })
	s.await("moved away", "")
	back, err := os.Open(r.l.Netns)
	must(t, err)
	defer back.Close()
	other.do(func(nl *netlink.Handle) error { return nl.LinkSetNsFd(other.link("wan1"), int(back.Fd())) })
	r.addr("wan1", "192.0.2.11/24")
	s.await("moved back", "wan1: address of the node")

	r.del("wan1")
	s.await("deleted", "")
	r.vxlan("wan1", 2)
	r.addr("wan1", "192.0.2.11/24")
	s.await("made again", "wan1: address of the node")
	if _, uplinks := s.now(); uplinks[0].Index != r.index("wan1") || uplinks[0].Index == first {
		t.Errorf("index %d, the device has %d, the first had %d", uplinks[0].Index, r.index("wan1"), first)
	}
}

// A virtual address that moves to another device, as keepalived has it.
func TestRunFollowsAddressesThatMove(t *testing.T) {
	r := newRig(t)
	r.vxlan("wan0", 1)
	r.vxlan("wan1", 2)
	r.addr("wan0", "192.0.2.11/24", "203.0.113.7/32")
	s := r.follow(Names{})
	s.await("before", "wan0: address of the node")
	r.delAddr("wan0", "203.0.113.7/32")
	r.addr("wan1", "203.0.113.7/32")
	s.await("moved", "wan0: address of the node\nwan1: address of the node")
	s.awaitSources("the other device", "wan1", "0.0.0.0/0 203.0.113.7")
	r.delAddr("wan1", "203.0.113.7/32")
	r.addr("wan0", "203.0.113.7/32")
	s.await("moved back", "wan0: address of the node")
}

func TestRunFollowsBridges(t *testing.T) {
	r := newRig(t)
	r.bridge("br0")
	r.veth("pod1")
	r.vxlan("wan0", 1)
	r.addr("br0", "10.88.0.1/16")
	s := r.follow(Names{})
	enslave := func(port string) {
		r.do(func(nl *netlink.Handle) error { return nl.LinkSetMaster(r.link(port), r.link("br0")) })
	}
	enslave("pod1")
	s.await("a port of a workload", "-br0: "+localBridgeReason)
	enslave("wan0")
	s.await("a port that leads off the node", "br0: address of the node")
	r.do(func(nl *netlink.Handle) error { return nl.LinkSetNoMaster(r.link("wan0")) })
	s.await("released", "-br0: "+localBridgeReason)
	r.addr("wan0", "192.0.2.11/24")
	s.await("with an address of its own", "wan0: address of the node\n-br0: "+localBridgeReason)
	enslave("wan0")
	s.await("enslaved with its address", "br0: address of the node\n-wan0: port of bridge br0")
	r.do(func(nl *netlink.Handle) error { return nl.LinkSetNoMaster(r.link("wan0")) })
	r.route("default", "br0", via("10.88.0.2"))
	s.await("a default route by the bridge", "br0: default route\nwan0: address of the node")
}

// Kinds that not every kernel has: each with an address, and what is said of it.
func TestRunKnowsKinds(t *testing.T) {
	named := func(name string) netlink.LinkAttrs { return netlink.LinkAttrs{Name: name} }
	local, remote := net.ParseIP("192.0.2.1"), net.ParseIP("192.0.2.2")
	for _, tc := range []struct {
		link func(parent int) netlink.Link
		want string
	}{
		{func(int) netlink.Link {
			return &netlink.Tuntap{LinkAttrs: named("d"), Mode: netlink.TUNTAP_MODE_TUN}
		}, "d L3: address of the node"},
		{func(int) netlink.Link {
			return &netlink.Tuntap{LinkAttrs: named("d"), Mode: netlink.TUNTAP_MODE_TAP}
		}, "-d: " + workloadReason},
		{func(int) netlink.Link { return &netlink.Ifb{LinkAttrs: named("d")} }, "-d: packets of a device of kind ifb go nowhere"},
		{func(int) netlink.Link { return &netlink.Dummy{LinkAttrs: named("d")} }, "-d: packets of a device of kind dummy go nowhere"},
		{func(int) netlink.Link { return &netlink.Wireguard{LinkAttrs: named("d")} }, "d L3: address of the node"},
		{func(int) netlink.Link {
			return &netlink.Iptun{LinkAttrs: named("d"), Local: local, Remote: remote}
		}, "d L3: address of the node"},
		{func(int) netlink.Link {
			return &netlink.Sittun{LinkAttrs: named("d"), Local: local, Remote: remote}
		}, "d L3: address of the node"},
		{func(int) netlink.Link {
			return &netlink.Gretun{LinkAttrs: named("d"), Local: local, Remote: remote}
		}, "d L3: address of the node"},
		{func(int) netlink.Link { return &netlink.Gretun{LinkAttrs: named("d"), Local: local} }, "-d: GRE without a fixed remote address: packets begin with the outer header"},
		{func(int) netlink.Link {
			return &netlink.Gretap{LinkAttrs: named("d"), Local: local, Remote: remote}
		}, "d: address of the node"},
		{func(int) netlink.Link {
			return &netlink.Geneve{LinkAttrs: named("d"), ID: 7, Remote: remote, Dport: 6081}
		}, "d: address of the node"},
		{func(int) netlink.Link { return netlink.NewLinkBond(named("d")) }, "d: address of the node"},
		{func(int) netlink.Link { return &netlink.GenericLink{LinkAttrs: named("d"), LinkType: "team"} }, "d: address of the node"},
		{func(int) netlink.Link { return &netlink.Vrf{LinkAttrs: named("d"), Table: 10} }, "-d: a VRF: its members are judged"},
		{func(parent int) netlink.Link {
			return &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "d", ParentIndex: parent}, VlanId: 5}
		}, "d: address of the node"},
		{func(parent int) netlink.Link {
			return &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "d", ParentIndex: parent}, Mode: netlink.MACVLAN_MODE_BRIDGE}
		}, "d: address of the node"},
		{func(parent int) netlink.Link {
			return &netlink.IPVlan{LinkAttrs: netlink.LinkAttrs{Name: "d", ParentIndex: parent}, Mode: netlink.IPVLAN_MODE_L2}
		}, "d: address of the node"},
	} {
		r := rig{t: t}
		link := tc.link(1)
		t.Run(link.Type()+strings.SplitN(tc.want, ":", 2)[0], func(t *testing.T) {
			r = *newRig(t)
			r.vxlan("parent", 1)
			r.add(tc.link(r.index("parent")))
			r.addr("d", "198.51.100.1/24")
			s := r.follow(Names{})
			s.await("kind "+link.Type(), tc.want)
		})
	}
}

// The index of a parent in another namespace is that of another device here.
func TestRunKnowsParentsElsewhere(t *testing.T) {
	r, other := newRig(t), newRig(t)
	r.bridge("br0")
	other.vxlan("wan0", 1)
	if a, b := r.index("br0"), other.index("wan0"); a != b {
		t.Fatalf("the indexes are %d and %d", a, b)
	}
	other.add(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "d", ParentIndex: other.index("wan0")}, Mode: netlink.MACVLAN_MODE_BRIDGE})
	ns, err := os.Open(r.l.Netns)
	must(t, err)
	defer ns.Close()
	other.do(func(nl *netlink.Handle) error { return nl.LinkSetNsFd(other.link("d"), int(ns.Fd())) })
	r.addr("d", "198.51.100.1/24")
	r.follow(Names{}).await("its parent is not the bridge", "d: address of the node")
}

// Routes of every form: what they say of devices and addresses.
func TestRunReadsRoutes(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		r.veth(name)
	}
	r.addr("a", "192.0.2.1/24")
	r.addr("b", "198.51.100.1/24")
	s := r.follow(Names{})
	none := func(device string) string { return "-" + device + ": " + workloadReason }
	s.await("addresses", none("a")+"\n"+none("b"))

	r.route("10.1.0.0/16", "", func(route *netlink.Route) {
		route.MultiPath = []*netlink.NexthopInfo{
			{LinkIndex: r.index("a"), Gw: net.ParseIP("192.0.2.254")}, {LinkIndex: r.index("b"), Gw: net.ParseIP("198.51.100.254")},
		}
	})
	s.await("several next hops", "a: route by a gateway\nb: route by a gateway")
	s.awaitSources("the first next hop", "a", "0.0.0.0/0 192.0.2.1")
	s.awaitSources("the second next hop", "b", "0.0.0.0/0 198.51.100.1")

	r.route("10.2.0.0/16", "c", func(route *netlink.Route) {
		via("203.0.113.1")(route)
		route.Flags = int(netlink.FLAG_ONLINK)
	})
	s.await("a gateway that is declared to be on the link", "a: route by a gateway\nb: route by a gateway\nc: route by a gateway")
	s.awaitSources("a device without an address", "c", "0.0.0.0/0 192.0.2.1")

	r.route("10.2.3.0/24", "", func(route *netlink.Route) { route.Type = unix.RTN_BLACKHOLE })
	r.route("10.3.0.0/16", "d", func(route *netlink.Route) {
		via("203.0.113.1")(route)
		route.Flags, route.Table = int(netlink.FLAG_ONLINK), 1000
	})
	rule := netlink.NewRule()
	rule.Table, rule.Priority, rule.Src = 1000, 100, ipNet("192.0.2.77/32")
	r.do(func(nl *netlink.Handle) error { return nl.RuleAdd(rule) })
	s.await("a table with a rule", "a: route by a gateway\nb: route by a gateway\nc: route by a gateway\nd: route by a gateway")
	r.do(func(nl *netlink.Handle) error { return nl.RuleDel(rule) })
	s.await("without its rule", "a: route by a gateway\nb: route by a gateway\nc: route by a gateway")

	r.route("default6", "e", via("fe80::1"))
	s.await("IPv6", "a: route by a gateway\nb: route by a gateway\nc: route by a gateway\ne: default route")
	r.route("2001:db8:5::/48", "", func(route *netlink.Route) {
		route.MultiPath = []*netlink.NexthopInfo{{LinkIndex: r.index("e"), Gw: net.ParseIP("fe80::1")}, {LinkIndex: r.index("f"), Gw: net.ParseIP("fe80::2")}}
	})
	s.await("IPv6 with several next hops", "a: route by a gateway\nb: route by a gateway\nc: route by a gateway\ne: default route\nf: route by a gateway")
	r.route("10.4.0.0/16", "g", func(route *netlink.Route) {
		route.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.ParseIP("fe80::1")}
	})
	s.await("a gateway of the other family", "a: route by a gateway\nb: route by a gateway\nc: route by a gateway\ne: default route\nf: route by a gateway\ng: route by a gateway")
}

// Each kind of change is noticed by itself, where nothing else happens.
func TestRunHearsOfEachKindOfChange(t *testing.T) {
	r := newRig(t)
	must(t, r.l.Sysctl("net.ipv6.conf.default.addr_gen_mode", "1")) // no address that comes by itself
	r.veth("a")
	for _, family := range []string{"10.0.0.0/8", "2001:db8:1::/48"} {
		r.route(family, "a", func(route *netlink.Route) {
			route.Table = 1000
			if route.Gw = net.ParseIP("fe80::1"); route.Family == unix.AF_INET {
				route.Gw, route.Flags = net.ParseIP("203.0.113.1"), int(netlink.FLAG_ONLINK)
			}
		})
	}
	s := r.follow(Names{})
	s.await("no rule", "")
	for _, source := range []string{"192.0.2.77/32", "2001:db8::77/128"} {
		rule := netlink.NewRule()
		rule.Table, rule.Priority, rule.Src = 1000, 100, ipNet(source)
		r.do(func(nl *netlink.Handle) error { return nl.RuleAdd(rule) })
		s.await("a rule for "+source, "a: route by a gateway")
		r.do(func(nl *netlink.Handle) error { return nl.RuleDel(rule) })
		s.await("no rule for "+source, "")
	}
	r.route("11.0.0.0/8", "a", func(route *netlink.Route) {
		route.Gw, route.Flags = net.ParseIP("203.0.113.1"), int(netlink.FLAG_ONLINK)
	})
	s.await("a route", "a: route by a gateway")
	r.delRoute("11.0.0.0/8", "a")
	s.await("no route", "")
	r.route("2001:db8:2::/48", "a", via("fe80::1"))
	s.await("an IPv6 route", "a: route by a gateway")
	r.delRoute("2001:db8:2::/48", "a")
	s.await("no IPv6 route", "")
	r.route("12.0.0.0/8", "a", nil)
	s.await("a route on the link", "")
	s.SetPeers(Peers{Nodes: []netip.Addr{netip.MustParseAddr("12.0.0.1")}})
	s.await("another node", "a: route to another node")
	s.SetPeers(Peers{})
	s.await("no other node", "")
	r.vxlan("wan0", 1)
	r.down("wan0") // an address of it has no route
	r.addr("wan0", "192.0.2.1/32")
	s.await("an address", "wan0: address of the node")
	r.delAddr("wan0", "192.0.2.1/32")
	s.await("no address", "")
	r.addr("wan0", "2001:db8::1/128")
	s.await("an IPv6 address", "wan0: address of the node")
	r.do(func(nl *netlink.Handle) error { return nl.LinkSetName(r.link("wan0"), "wan1") })
	s.await("a name", "wan1: address of the node")
}

// Routes that name the object of a next hop, which say no more where nexthop_compat_mode is 0.
func TestRunReadsNexthopObjects(t *testing.T) {
	lab.NeedsLinux(t, 5, 7, "net.ipv4.nexthop_compat_mode")
	for _, compat := range []string{"1", "0"} {
		t.Run("nexthop_compat_mode="+compat, func(t *testing.T) {
			r := newRig(t)
			must(t, r.l.Sysctl("net.ipv4.nexthop_compat_mode", compat))
			r.veth("a")
			r.veth("b")
			r.addr("a", "192.0.2.1/24")
			r.addr("b", "198.51.100.1/24")
			s := r.follow(Names{})
			s.await("addresses", "-a: "+workloadReason+"\n-b: "+workloadReason)
			r.nexthop(1, r.index("a"), "192.0.2.254")
			r.nexthop(2, r.index("b"), "198.51.100.254")
			r.nexthopGroup(3, 1, 2)
			r.routeByNexthop("10.1.0.0/16", 1)
			s.await("a single one", "a: route by a gateway\n-b: "+workloadReason)
			r.routeByNexthop("10.2.0.0/16", 3)
			s.await("a group", "a: route by a gateway\nb: route by a gateway")
			s.awaitSources("of the group", "b", "0.0.0.0/0 198.51.100.1")
		})
	}
}

// What differs in nothing that counts is not told again.
func TestTellOnlyChanges(t *testing.T) {
	calls := 0
	l := looker{Follower: New(Config{}), handle: func([]Uplink, []Left) { calls++ }}
	for i, tc := range []struct {
		what, state string
		told        bool
	}{
		{"nothing", "", true},
		{"nothing again", "", false},
		{"an uplink", plain, true},
		{"a pod", plain + "link veth1 kind veth\nroute 10.244.1.5/32 dev veth1", false},
		{"a source", plain + "route 10.0.0.0/8 via 192.0.2.1 dev eth0 src 192.0.2.99", true},
		{"another source", plain + "route 10.0.0.0/8 via 192.0.2.1 dev eth0 src 192.0.2.98", true},
		{"one that says no more", plain + "route 10.0.0.0/8 via 192.0.2.1 dev eth0 src 192.0.2.98\nroute 10.1.0.0/16 via 192.0.2.1 dev eth0 src 192.0.2.98", false},
		{"a device left out", plain + "link ib0 type 32\naddr ib0 198.51.100.1/24", true},
		{"the name of an uplink", strings.ReplaceAll(plain, "eth0", "eth1"), true},
		{"its index", "link veth1 kind veth\n" + strings.ReplaceAll(plain, "eth0", "eth1"), true},
	} {
		l.state = parseState(t, tc.state)
		l.SetPeers(l.state.Peers)
		before := calls
		l.tell()
		if told := calls > before; told != tc.told {
			t.Errorf("%d, %s: told: %t", i, tc.what, told)
		}
	}
}

// A burst of changes overflows the socket's buffer; none of what matters is lost.
func TestRunSurvivesAnOverflow(t *testing.T) {
	r := newRig(t)
	r.vxlan("wan0", 1)
	r.addr("wan0", "192.0.2.11/24", "192.0.2.99/32")
	s := r.follow(Names{})
	s.await("the start", "wan0: address of the node")
	index := r.index("wan0")
	r.do(func(nl *netlink.Handle) error {
		for i := range 5000 {
			dst := &net.IPNet{IP: net.IPv4(10, byte(i>>8), byte(i), 0).To4(), Mask: net.CIDRMask(24, 32)}
			if err := nl.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: index, Gw: net.ParseIP("192.0.2.1")}); err != nil {
				return err
			}
		}
		return nil
	})
	r.route("172.16.0.0/12", "wan0", func(route *netlink.Route) { via("192.0.2.1")(route); route.Src = net.ParseIP("192.0.2.99") })
	s.awaitSources("the last route", "wan0", "172.16.0.0/12 192.0.2.99\n0.0.0.0/0 192.0.2.11")
	if n := s.log.Count("level=WARN"); n > 0 {
		t.Errorf("warned %d times:\n%s", n, s.log)
	}
}

// Events that are thrown away before all is read again don't make it read twice.
func TestSubscriptionDrain(t *testing.T) {
	r := newRig(t)
	must(t, r.l.Sysctl("net.ipv6.conf.default.disable_ipv6", "1")) // no address that comes by itself
	r.bridge("br0")
	var s *subscription
	must(t, r.l.Do(func() (err error) { s, err = subscribe(unix.RTNLGRP_IPV4_IFADDR); return err }))
	defer s.close()
	if s.receive(false) {
		t.Error("an event before the first change")
	}
	for _, p := range []string{"192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32"} {
		r.addr("br0", p)
	}
	if !s.receive(true) {
		t.Error("no event")
	}
	s.drain()
	if s.receive(false) {
		t.Error("an event after all were thrown away")
	}
	<-s.resume
}

// A list that changes while it is read is read again, and never lacks what was there all the time.
func TestReaderRepeatsInterruptedLists(t *testing.T) {
	r := newRig(t)
	r.vxlan("wan0", 1)
	index := r.index("wan0")
	var wanted []netip.Addr
	for i := range 2000 { // several messages
		a := netip.AddrFrom4([4]byte{192, 0, byte(2 + i/250), byte(1 + i%250)})
		wanted = append(wanted, a)
		r.do(func(nl *netlink.Handle) error {
			return nl.AddrAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Index: index}}, parseAddress(t, a.String()+"/32"))
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	churned := make(chan error, 1)
	go func() {
		churned <- r.l.Link(func(nl *netlink.Handle) error {
			link := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Index: index}}
			for ctx.Err() == nil {
				a, err := netlink.ParseAddr("203.0.113.1/32")
				if err == nil {
					err = nl.AddrAdd(link, a)
				}
				if err == nil {
					err = nl.AddrDel(link, a)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}()
	var reader *reader
	must(t, r.l.Do(func() (err error) { reader, err = newReader(); return err }))
	defer reader.close()
	tries, lists := 0, 0
	lab.Await(t, "an interrupted list", func() bool {
		var list []netip.Addr
		err := reader.dump("addresses", unix.RTM_GETADDR, unix.RTM_NEWADDR, family(unix.AF_INET, unix.SizeofIfAddrmsg), func() { list = nil; tries++ }, func(m []byte) error {
			a, err := parseAddr(m)
			list = append(list, a.Local)
			return err
		})
		lists++
		if errors.Is(err, errUnstable) {
			return tries > lists
		}
		must(t, err)
		slices.SortFunc(list, netip.Addr.Compare)
		if len(slices.Compact(slices.Clone(list))) != len(list) {
			t.Error("an address is listed twice")
		}
		for _, a := range wanted {
			if _, found := slices.BinarySearchFunc(list, a, netip.Addr.Compare); !found {
				t.Errorf("%v is missing", a)
			}
		}
		return tries > lists || t.Failed()
	})
	t.Logf("%d lists, read %d times", lists, tries)
	cancel()
	must(t, <-churned)
}

func TestRunRefusesMalformedNames(t *testing.T) {
	f := New(Config{Names: Names{Include: []string{"["}}})
	if err := f.Run(context.Background(), func([]Uplink, []Left) { t.Error("told") }); err == nil {
		t.Error("accepted")
	}
}

// A namespace that can't be entered yet is tried again.
func TestRunTriesAgain(t *testing.T) {
	r := newRig(t)
	path := r.l.Dir + "/netns"
	log, text := lab.NewLog()
	f := New(Config{Log: log, Netns: path})
	ctx, cancel := context.WithCancel(context.Background())
	told := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx, func([]Uplink, []Left) { told <- struct{}{} }) }()
	lab.Await(t, "a message", func() bool { return text.Count("cannot follow the network devices") > 0 })
	must(t, os.Symlink(r.l.Netns, path))
	<-told
	cancel()
	must(t, <-done)
}

// What takes long is done less often, however often it changes.
func TestPartPace(t *testing.T) {
	now := time.Now()
	var p part
	p.mark(now, settle)
	p.mark(now.Add(settle/2), settle)
	if p.isDue(now) || !p.isDue(now.Add(settle)) {
		t.Errorf("the first of two changes has to be %v ago: due %v after it", settle, p.due.Sub(now))
	}
	p.begin(nil)
	p.end(time.Now().Add(-40*time.Millisecond), nil) // as if it had taken 40 ms
	end := time.Now()
	p.mark(end, settle)
	if wait := p.due.Sub(end); wait < 1900*time.Millisecond || wait > 3*time.Second {
		t.Errorf("after 40 ms of work it waits %v", wait)
	}
	p.begin(nil)
	p.end(time.Now(), os.ErrInvalid)
	if wait := time.Until(p.due); !p.dirty || wait < retry/2 || wait > 2*retry {
		t.Errorf("after an error it waits %v", wait)
	}
}
