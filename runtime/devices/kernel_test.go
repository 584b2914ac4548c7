package devices

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// readState reads all of a node.
func (r *rig) readState() State {
	r.t.Helper()
	var reader *reader
	must(r.t, r.l.Do(func() (err error) { reader, err = newReader(); return err }))
	defer reader.close()
	var s State
	var err error
	s.Links, err = reader.links()
	must(r.t, err)
	s.Addrs, err = reader.addrs()
	must(r.t, err)
	s.Tables, err = reader.tables(s.Links)
	must(r.t, err)
	s.Routes, err = reader.routes(s.Tables, 0)
	must(r.t, err)
	return s
}

// sourceOf is what the sources of an uplink say of a destination.
func sourceOf(u Uplink, to netip.Addr) netip.Addr {
	for _, s := range u.Sources {
		if s.Destination.Contains(to) {
			return s.Addr
		}
	}
	return netip.Addr{}
}

// Sources are those that the kernel names.
func TestChooseAgreesWithTheKernel(t *testing.T) {
	r := newRig(t)
	for i := range 4 {
		r.vxlan(fmt.Sprint("wan", i), i+1)
	}
	r.addr("lo", "203.0.113.77/32", "2001:db8:77::77/128")
	r.addr("wan0", "192.0.2.11/24", "192.0.2.12/24", "198.51.100.11/24", "203.0.113.7/32")
	r.addr("wan0", "fd00:1::11/64", "2001:db8:1::11/64", "2001:db8:2::11/64")
	r.addr("wan1", "192.0.3.11/24", "192.0.4.11/24")
	r.do(func(nl *netlink.Handle) error { // with a peer, and with the scope of the link
		a := parseAddress(t, "192.0.6.1/32")
		a.Peer = ipNet("192.0.6.2/32")
		if err := nl.AddrAdd(r.link("wan3"), a); err != nil {
			return err
		}
		b := parseAddress(t, "192.0.5.1/24")
		b.Scope = unix.RT_SCOPE_LINK
		return nl.AddrAdd(r.link("wan3"), b)
	})
	r.route("default", "wan0", via("192.0.2.1"))
	r.route("default6", "wan0", via("fe80::1"))
	r.route("10.0.0.0/8", "wan0", via("198.51.100.1"))
	r.route("10.1.0.0/16", "wan1", via("192.0.4.1"))
	r.route("10.2.0.0/16", "wan1", func(route *netlink.Route) { via("192.0.4.1")(route); route.Src = net.ParseIP("203.0.113.7") })
	r.route("10.2.0.0/16", "wan0", func(route *netlink.Route) { via("192.0.2.1")(route); route.Priority = 10 })
	r.route("10.2.3.0/24", "wan1", func(route *netlink.Route) { via("192.0.3.1")(route); route.Priority = 20 })
	r.route("10.2.3.0/24", "wan1", func(route *netlink.Route) { via("192.0.4.1")(route); route.Priority = 10 })
	r.route("10.3.0.0/16", "wan2", func(route *netlink.Route) { via("192.0.9.1")(route); route.Flags = int(netlink.FLAG_ONLINK) })
	r.route("10.4.0.0/16", "wan3", nil)
	r.route("10.5.0.0/16", "wan3", via("192.0.6.2"))
	r.route("2001:db8:5::/48", "wan1", via("fe80::1"))
	r.route("2001:db8:6::/48", "wan0", func(route *netlink.Route) { via("fe80::1")(route); route.Src = net.ParseIP("2001:db8:2::11") })

	r.route("10.6.0.0/16", "wan0", func(route *netlink.Route) { via("192.0.2.1")(route); route.Table = 1000 })
	r.route("10.7.0.0/16", "", func(route *netlink.Route) { route.Type = unix.RTN_UNREACHABLE })

	state := r.readState()
	for _, route := range state.Routes {
		if route.Table == 1000 || route.Destination.String() == "10.7.0.0/16" {
			t.Errorf("a route that does not count is kept: %+v", route)
		}
	}
	if !slices.ContainsFunc(state.Routes, func(route Route) bool {
		return route.Destination.String() == "10.2.3.0/24" && route.Metric == 20 && route.Gateway.String() == "192.0.3.1"
	}) {
		t.Error("a route's metric isn't read") // the kernel lists the better route first
	}
	uplinks, left := Choose(state)
	if len(uplinks) != 4 {
		t.Fatalf("%v, left %v", uplinks, left)
	}
	asked := 0
	for _, text := range []string{
		"192.0.2.200", "198.51.100.200", "192.0.3.200", "192.0.4.200", "192.0.6.2", "192.0.5.77", "8.8.8.8", "10.9.9.9", "10.1.1.1", "10.2.1.1",
		"10.2.3.1", "10.3.1.1", "10.4.1.1", "10.5.1.1", "fd00:1::200", "2001:db8:1::200", "2001:db8:2::200", "fd77::1", "2a00::1",
		"2001:db8:5::1", "2001:db8:6::1", "2002:c000:201::1",
	} {
		to := netip.MustParseAddr(text)
		var routes []netlink.Route
		r.do(func(nl *netlink.Handle) (err error) { routes, err = nl.RouteGet(to.AsSlice()); return err })
		want, _ := netip.AddrFromSlice(routes[0].Src)
		for _, u := range uplinks {
			if u.Index != routes[0].LinkIndex {
				continue
			}
			asked++
			if got := sourceOf(u, to); got != want.Unmap() {
				t.Errorf("toward %s by %s: %v, the kernel has %v; sources\n%s", to, u.Name, got, want, describeSources(u))
			}
		}
	}
	if asked != 22 {
		t.Errorf("compared %d destinations", asked)
	}
}

// addRoutes adds many routes by a device, of which every thirtieth has a source of its own.
func (r *rig) addRoutes(n int, device string, gateway, source netip.Addr) {
	r.t.Helper()
	index := nl.Uint32Attr(uint32(r.index(device)))
	must(r.t, r.l.Do(func() error {
		s, err := nl.GetNetlinkSocketAt(-1, -1, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer s.Close()
		sockets := map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
		for i := range n {
			bits := byte(24)
			to := netip.AddrFrom4([4]byte{byte(20 + i>>16), byte(i >> 8), byte(i), 0}).AsSlice()
			if gateway.Is6() {
				bits = 48
				to = netip.AddrFrom16([16]byte{0x2a, 0, byte(i >> 16), byte(i >> 8), 0, byte(i)}).AsSlice()
			}
			family := byte(unix.AF_INET)
			if gateway.Is6() {
				family = unix.AF_INET6
			}
			req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
			req.Sockets = sockets
			message := []byte{family, bits, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BGP, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0}
			add := func(kind int, value []byte) { message = append(message, nl.NewRtAttr(kind, value).Serialize()...) }
			add(unix.RTA_DST, to)
			add(unix.RTA_GATEWAY, gateway.AsSlice())
			add(unix.RTA_OIF, index)
			if source.IsValid() && i%30 == 0 {
				add(unix.RTA_PREFSRC, source.AsSlice())
			}
			req.AddRawData(message)
			if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
				return err
			}
		}
		return nil
	}))
}

// What a node with the routes of BGP pays for each reading.
func BenchmarkHundredThousandRoutes(b *testing.B) {
	for _, bc := range []struct {
		name            string
		gateway, source string
	}{
		{"IPv4", "192.0.2.1", ""}, {"IPv4 with two sources", "192.0.2.1", "192.0.2.99"}, {"IPv6", "2001:db8::1", ""},
	} {
		b.Run(bc.name, func(b *testing.B) {
			r := newRig(b)
			must(b, r.l.Sysctl("net.ipv6.route.max_size", "10000000"))
			r.vxlan("wan0", 1)
			r.addr("wan0", "192.0.2.11/24", "192.0.2.99/32", "2001:db8::11/64", "2001:db8::12/64")
			r.route("default", "wan0", via("192.0.2.1"))
			r.route("default6", "wan0", via("2001:db8::1"))
			var source netip.Addr
			if bc.source != "" {
				source = netip.MustParseAddr(bc.source)
			}
			r.addRoutes(100_000, "wan0", netip.MustParseAddr(bc.gateway), source)
			s := r.readState()
			if len(s.Routes) < 100_000 {
				b.Fatalf("read %d routes", len(s.Routes))
			}
			for i := range 200 {
				s.Peers.Nodes = append(s.Peers.Nodes, netip.AddrFrom4([4]byte{192, 0, 2, byte(20 + i)}))
				s.Peers.Pods = append(s.Peers.Pods, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24))
			}
			b.Run("read", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					r.readState()
				}
			})
			b.Run("choose", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					Choose(s)
				}
			})
		})
	}
}
