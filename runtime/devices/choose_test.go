package devices

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// parseState reads lines much like those of ip(8): see the tables below.
func parseState(t testing.TB, text string) State {
	t.Helper()
	s := State{Tables: []uint32{254, 253}}
	index := map[string]int{}
	prefix := func(p string) netip.Prefix {
		switch p {
		case "default":
			return all4
		case "default6":
			return all6
		}
		return netip.MustParsePrefix(p)
	}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		var has []string
		value := map[string]string{}
		for i := 2; i < len(words); i++ {
			has = append(has, words[i])
			if i+1 < len(words) {
				value[words[i]] = words[i+1]
			}
		}
		number := func(name string) int { n, _ := strconv.Atoi(value[name]); return n }
		switch words[0] {
		case "link":
			l := Link{Name: words[1], Index: len(s.Links) + 1, Kind: value["kind"], Type: unix.ARPHRD_ETHER, Flags: unix.IFF_UP, Table: uint32(number("table"))}
			l.Master, l.Parent = cmp.Or(index[value["master"]], number("master")), index[value["on"]]
			if n := number("type"); n != 0 {
				l.Type = uint16(n)
			}
			if words[1] == "lo" {
				l.Flags |= unix.IFF_LOOPBACK
			}
			if l.Table != 0 {
				s.Tables = append(s.Tables, l.Table)
			}
			l.OuterHeader = slices.Contains(has, "outer")
			index[l.Name], s.Links = l.Index, append(s.Links, l)
		case "addr":
			p := prefix(words[2])
			a := Addr{Device: index[words[1]], Local: p.Addr(), Net: p, Scope: uint8(number("scope"))}
			for name, flag := range map[string]uint32{
				"secondary": unix.IFA_F_SECONDARY, "deprecated": unix.IFA_F_DEPRECATED, "tentative": unix.IFA_F_TENTATIVE,
				"failed": unix.IFA_F_DADFAILED, "temporary": unix.IFA_F_TEMPORARY, "optimistic": unix.IFA_F_OPTIMISTIC | unix.IFA_F_TENTATIVE,
			} {
				if slices.Contains(has, name) {
					a.Flags |= flag
				}
			}
			s.Addrs = append(s.Addrs, a)
		case "route":
			h := &Hop{Device: index[value["dev"]], Scope: uint8(number("scope"))}
			for name, a := range map[string]*netip.Addr{"via": &h.Gateway, "src": &h.Source} {
				if value[name] != "" {
					*a = netip.MustParseAddr(value[name])
				}
			}
			r := Route{Destination: prefix(words[1]), Table: 254, Metric: uint32(number("metric")), Selective: slices.Contains(has, "selective"), Hop: h}
			if n := number("table"); n != 0 {
				r.Table = uint32(n)
			}
			s.Routes = append(s.Routes, r)
		case "table":
			n, _ := strconv.Atoi(words[1])
			s.Tables = append(s.Tables, uint32(n))
		case "node":
			s.Peers.Nodes = append(s.Peers.Nodes, netip.MustParseAddr(words[1]))
		case "pods":
			s.Peers.Pods = append(s.Peers.Pods, prefix(words[1]))
		case "ourpods":
			s.Peers.LocalPods = append(s.Peers.LocalPods, prefix(words[1]))
		case "include":
			s.Names.Include = append(s.Names.Include, words[1])
		case "exclude":
			s.Names.Exclude = append(s.Names.Exclude, words[1])
		default:
			t.Fatalf("line %q", line)
		}
	}
	return s
}

// describe has an uplink as "eth0: default route", a device left out as "-br0: reason".
func describe(uplinks []Uplink, left []Left) string {
	var out []string
	for _, u := range uplinks {
		l3 := ""
		if u.L3 {
			l3 = " L3"
		}
		out = append(out, u.Name+l3+": "+u.Why)
	}
	for _, l := range left {
		out = append(out, "-"+l.Name+": "+l.Reason)
	}
	return strings.Join(out, "\n")
}

func describeSources(u Uplink) string {
	var out []string
	for _, s := range u.Sources {
		out = append(out, fmt.Sprintf("%s %s", s.Destination, s.Addr))
	}
	return strings.Join(out, "\n")
}

func unindent(text string) string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// plain is a node with one network, whose second node and its pods the cluster knows.
const plain = `
	link lo
	link eth0
	addr eth0 192.0.2.11/24
	addr eth0 fe80::11/64
	route default via 192.0.2.1 dev eth0
	route 192.0.2.0/24 dev eth0 scope 253 src 192.0.2.11
	node 192.0.2.12
	pods 10.244.2.0/24
	ourpods 10.244.1.0/24
`

const localBridgeReason = "bridge of this node's workloads: no port of it, no default route and no route to another node leads off the node"

func TestChooseDevices(t *testing.T) {
	for _, tc := range []struct{ name, state, want string }{
		{"nothing", "", ""},
		{"one network", plain, "eth0: default route"},
		{"flannel", plain + `
			link flannel.1 kind vxlan
			link cni0 kind bridge
			link veth1 kind veth master cni0
			addr flannel.1 10.244.1.0/32
			addr cni0 10.244.1.1/24
			route 10.244.1.0/24 dev cni0 scope 253
			route 10.244.2.0/24 via 10.244.2.0 dev flannel.1`, `
			eth0: default route
			flannel.1: route to another node's pods
			-cni0: ` + localBridgeReason},
		{"a network of the node that only it and clients are on", plain + "link eth1\naddr eth1 198.51.100.11/24\nroute 198.51.100.0/24 dev eth1 scope 253", `
			eth0: default route
			eth1: address of the node`},
		{"a virtual address alone", plain + "link eth1\naddr eth1 203.0.113.7/32", "eth0: default route\neth1: address of the node"},
		{"only a link-local address", plain + "link eth1\naddr eth1 fe80::12/64\nlink eth2\naddr eth2 169.254.7.7/16", "eth0: default route"},
		{"an address that another node has", plain + "link eth1\naddr eth1 2001:db8::1/64 failed", `
			eth0: default route
			-eth1: another host has its address (duplicate address detection failed)`},
		{"Calico by IPIP, with a pod", plain + `
			link tunl0 kind ipip type 768
			link cali1 kind veth
			link cali2 kind veth
			addr tunl0 10.244.1.128/32
			addr cali2 169.254.1.1/32
			route 10.244.1.130/32 dev cali1 scope 253
			route 10.244.2.66/32 dev cali2 scope 253
			route 10.244.2.64/26 via 192.0.2.12 dev tunl0`, `
			eth0: default route
			tunl0 L3: route to another node's pods`},
		{"Calico by WireGuard, in a table of its own", plain + `
			table 1
			link wireguard.cali kind wireguard type 65534
			route 10.244.2.64/26 dev wireguard.cali scope 253 table 1`, `
			eth0: default route
			wireguard.cali L3: route to another node's pods`},
		{"that table without a rule", plain + `
			link wireguard.cali kind wireguard type 65534
			route 10.244.2.64/26 dev wireguard.cali scope 253 table 1`, "eth0: default route"},
		{"Cilium with tunnels", plain + `
			table 2005
			link cilium_net kind veth
			link cilium_host kind veth
			link lxc1 kind veth
			addr cilium_host 10.244.1.7/32
			route 10.244.1.0/24 via 10.244.1.7 dev cilium_host src 10.244.1.7
			route 10.244.2.0/24 via 10.244.1.7 dev cilium_host src 10.244.1.7
			route default via 10.244.1.7 dev cilium_host table 2005`, `
			cilium_host: route to another node's pods
			eth0: default route`},
		{"Cilium without tunnels", plain + `
			table 2005
			link cilium_host kind veth
			addr cilium_host 10.244.1.7/32
			route 10.244.1.0/24 via 10.244.1.7 dev cilium_host src 10.244.1.7
			route default via 10.244.1.7 dev cilium_host table 2005`, "eth0: default route"},
		{"a pod's veth as the plugin ptp makes it", plain + "link veth1 kind veth\naddr veth1 10.244.1.1/32\nroute 10.244.1.5/32 dev veth1 scope 254 src 10.244.1.1", "eth0: default route"},
		{"Antrea or another switch's port for pods", plain + "link antrea-gw0 kind openvswitch\naddr antrea-gw0 10.244.1.1/24\nroute 10.244.1.0/24 dev antrea-gw0 scope 253", `
			eth0: default route
			-antrea-gw0: its addresses belong to the range of this node's pods, and no route by it leads to another node`},
		{"one that leads to the pods of others too", plain + "link antrea-gw0 kind openvswitch\naddr antrea-gw0 10.244.1.1/24\nroute 10.244.2.0/24 via 10.244.2.1 dev antrea-gw0", `
			antrea-gw0: route to another node's pods
			eth0: default route`},
		{"a route by a pod", plain + "link veth1 kind veth\nroute 10.99.0.0/16 via 10.244.1.5 dev veth1", "eth0: default route"},
		{"a bridge with the network card in it", `
			link br0 kind bridge
			link eth0 master br0
			link veth1 kind veth master br0
			addr br0 192.0.2.11/24`, `
			br0: address of the node
			-eth0: port of bridge br0`},
		{"a bridge with a VLAN of a network card in it", `
			link br0 kind bridge
			link eth0
			link eth0.5 kind vlan on eth0 master br0
			addr br0 192.0.2.11/24`, "br0: address of the node"},
		{"a bridge with a VLAN of a bridge of workloads in it", `
			link docker0 kind bridge
			link br0 kind bridge
			link docker0.5 kind vlan on docker0 master br0
			addr br0 192.0.2.11/24`, "-br0: " + localBridgeReason},
		{"a VLAN of a bridge of workloads", `
			link docker0 kind bridge
			link docker0.5 kind vlan on docker0
			addr docker0.5 192.0.2.11/24`, "-docker0.5: device of a workload: no default route and no route by a gateway or to another node uses it"},
		{"a VLAN of a port", `
			link br0 kind bridge
			link eth0 master br0
			link eth0.5 kind vlan on eth0
			addr eth0.5 192.0.2.11/24`, "eth0.5: address of the node\n-eth0: port of bridge br0"},
		{"docker0 and virbr0", plain + `
			link docker0 kind bridge
			link virbr0 kind bridge
			link vnet0 kind tun master virbr0
			addr docker0 172.17.0.1/16
			addr virbr0 192.168.122.1/24
			route 172.17.0.0/16 dev docker0 scope 253
			route 10.9.0.0/16 via 172.17.0.5 dev docker0`, `
			eth0: default route
			-docker0: ` + localBridgeReason + `
			-virbr0: ` + localBridgeReason},
		{"virbr0 that has another node behind it", plain + `
			link virbr0 kind bridge
			addr virbr0 192.168.122.1/24
			route 192.168.122.0/24 dev virbr0 scope 253
			node 192.168.122.17`, "eth0: default route\nvirbr0: route to another node"},
		{"a wide route to nodes and pods, where pods have a better one", plain + `
			link tun1 kind wireguard type 65534
			link tun2 kind wireguard type 65534
			route 10.0.0.0/8 dev tun1 scope 253
			route 10.244.0.0/16 dev tun2 scope 253
			node 10.0.0.12`, `
			eth0: default route
			tun1 L3: route to another node
			tun2 L3: route to another node's pods`},
		{"another node's address that a better route leads to", plain + `
			link virbr0 kind bridge
			addr virbr0 192.0.0.1/16
			route 192.0.0.0/16 dev virbr0 scope 253`, "eth0: default route\n-virbr0: " + localBridgeReason},
		{"a node that is a container", `
			link lo
			link eth0 kind veth
			link veth1 kind veth
			addr eth0 172.18.0.3/16
			route default via 172.18.0.1 dev eth0
			route 10.244.1.5/32 dev veth1 scope 253`, "eth0: default route"},
		{"such a node without a default route", `
			link eth0 kind veth
			link eth1 kind veth
			link eth2 kind veth
			addr eth0 172.18.0.3/16
			addr eth1 172.19.0.3/16
			addr eth2 172.20.0.3/16
			route 172.18.0.0/16 dev eth0 scope 253
			route 10.9.0.0/16 via 172.19.0.1 dev eth1
			node 172.18.0.4`, `
			eth0: route to another node
			eth1: route by a gateway
			-eth2: device of a workload: no default route and no route by a gateway or to another node uses it`},
		{"a VLAN in such a node", `
			link eth0 kind veth
			link eth0.5 kind vlan on eth0
			addr eth0.5 198.51.100.3/24
			route default via 172.18.0.1 dev eth0`, "eth0: default route\neth0.5: address of the node"},
		{"tap of a rootless node, and of a virtual machine", `
			link tap0 kind tun
			link tap1 kind tun
			addr tap0 10.0.2.100/24
			addr tap1 10.0.3.1/24
			route default via 10.0.2.2 dev tap0`, `
			tap0: default route
			-tap1: device of a workload: no default route and no route by a gateway or to another node uses it`},
		{"tun and ppp", "link tun0 kind tun type 65534\naddr tun0 10.8.0.2/24\nlink ppp0 type 512\naddr ppp0 192.0.2.7/32", `
			ppp0 L3: address of the node
			tun0 L3: address of the node`},
		{"a bond", `
			link bond0 kind bond
			link eth0 master bond0
			link eth1 master bond0
			addr bond0 192.0.2.11/24`, "bond0: address of the node\n-eth0: port of bond bond0\n-eth1: port of bond bond0"},
		{"a port that has an address by mistake", "link br0 kind bridge\nlink veth1 kind veth master br0\naddr veth1 192.0.2.11/24", "-veth1: port of bridge br0"},
		{"a port of what is not seen", "link eth1 master 7", "-eth1: port of another device"},
		{"a VRF", `
			link red kind vrf table 10
			link eth1 master red
			addr red 192.0.2.1/32
			addr eth1 198.51.100.11/24
			route default via 198.51.100.1 dev eth1 table 10`, "eth1: default route\n-red: a VRF: its members are judged"},
		{"devices that lead nowhere", plain + `
			link kube-ipvs0 kind dummy
			link dummy1 kind dummy
			link ifb0 kind ifb
			addr kube-ipvs0 10.96.0.1/32
			route default dev dummy1 scope 253`, `
			eth0: default route
			-kube-ipvs0: packets of a device of kind dummy go nowhere`},
		{"an unnumbered device", `
			link lo
			link eth0
			addr lo 192.0.2.11/32
			route 10.0.0.0/8 via fe80::1 dev eth0`, "eth0: route by a gateway"},
		{"IPv6 only", "link eth0\naddr eth0 2001:db8::11/64\nroute default6 via fe80::1 dev eth0", "eth0: default route"},
		{"InfiniBand and others", "link ib0 type 32\naddr ib0 192.0.2.11/24\nlink x0 type 4711\naddr x0 192.0.2.11/24", `
			-ib0: packets have a header of InfiniBand, not of Ethernet
			-x0: packets have an unknown header (hardware type 4711)`},
		{"GRE with and without a remote address", "link gre1 kind gre type 778\nlink gre2 kind gre type 778 outer\naddr gre1 192.0.2.1/30\naddr gre2 192.0.2.5/30", `
			gre1 L3: address of the node
			-gre2: GRE without a fixed remote address: packets begin with the outer header`},
		{"excluded", plain + "link eth1\naddr eth1 198.51.100.1/24\nexclude eth1\ninclude eth*", "eth0: included by the configuration\n-eth1: excluded by the configuration"},
		{"excluded what is none anyway", plain + "link docker0 kind bridge\naddr docker0 172.17.0.1/16\nexclude docker*", "eth0: default route\n-docker0: " + localBridgeReason},
		{"included", "link docker0 kind bridge\nlink eth0 master docker0\ninclude eth0\nlink ib0 type 32\ninclude ib*", `
			eth0: included by the configuration
			-ib0: packets have a header of InfiniBand, not of Ethernet`},
		{"the loopback can't be included", "link lo\naddr lo 127.0.0.1/8\ninclude *", ""},
		{"a node's address that is this node's own", "link veth1 kind veth\naddr veth1 192.0.2.11/32\nroute 192.0.2.11/32 dev veth1\nnode 192.0.2.11", ""},
		{"an address of another node's range behind one device", "link pod1 kind ipvlan\nroute 10.244.2.66/32 dev pod1 scope 253\npods 10.244.2.0/24", ""},
		{"a device that is gone", "route default via 192.0.2.1 dev eth9\naddr eth9 192.0.2.11/24", ""},
		{"a route for some packets", "link eth0 kind veth\nroute default via 192.0.2.1 dev eth0 selective", "eth0: default route"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := describe(Choose(parseState(t, tc.state))); got != unindent(tc.want) {
				t.Errorf("chose\n%s\nwant\n%s", got, unindent(tc.want))
			}
		})
	}
}

func TestChooseSources(t *testing.T) {
	for _, tc := range []struct{ name, state, want string }{
		{"one address", plain, "0.0.0.0/0 192.0.2.11"},
		{"both families", plain + "addr eth0 2001:db8::11/64\nroute default6 via fe80::1 dev eth0", "0.0.0.0/0 192.0.2.11\n::/0 2001:db8::11"},
		{"a route that names its source", plain + "addr eth0 192.0.2.99/32\nroute 10.0.0.0/8 via 192.0.2.1 dev eth0 src 192.0.2.99", `
			10.0.0.0/8 192.0.2.99
			0.0.0.0/0 192.0.2.11`},
		{"an address in the gateway's net", plain + "addr eth0 198.51.100.11/24\nroute 10.0.0.0/8 via 198.51.100.1 dev eth0\nroute 198.51.100.0/24 dev eth0 scope 253 src 198.51.100.11", `
			198.51.100.0/24 198.51.100.11
			10.0.0.0/8 198.51.100.11
			0.0.0.0/0 192.0.2.11`},
		{"a secondary address is not chosen", "link eth0\naddr eth0 192.0.2.12/24 secondary\naddr eth0 192.0.2.11/24", "0.0.0.0/0 192.0.2.11"},
		{"nor one of a narrower scope than the route", "link eth0\naddr eth0 192.0.2.9/24 scope 253\naddr eth0 192.0.2.11/24\nroute default via 192.0.2.1 dev eth0", "0.0.0.0/0 192.0.2.11"},
		{"shorter prefixes that say the same", plain + "route 10.0.0.0/8 via 192.0.2.1 dev eth0 src 192.0.2.99\nroute 10.1.0.0/16 via 192.0.2.1 dev eth0 src 192.0.2.99\nroute 10.2.0.0/16 via 192.0.2.1 dev eth0\nroute 10.2.3.0/24 via 192.0.2.1 dev eth0", `
			10.2.0.0/16 192.0.2.11
			10.0.0.0/8 192.0.2.99
			0.0.0.0/0 192.0.2.11`},
		{"the default route's source stands for all", plain + "route default via 192.0.2.1 dev eth0 src 192.0.2.99 metric 0 table 253", "0.0.0.0/0 192.0.2.11"},
		{"the better metric counts", "link eth0\naddr eth0 192.0.2.11/24\nroute default via 192.0.2.1 dev eth0 metric 200\nroute default via 192.0.2.1 dev eth0 src 192.0.2.99 metric 100", "0.0.0.0/0 192.0.2.99"},
		{"for prefixes too", plain + "route 10.0.0.0/8 via 192.0.2.1 dev eth0 src 192.0.2.98 metric 200\nroute 10.0.0.0/8 via 192.0.2.1 dev eth0 src 192.0.2.99 metric 100", "10.0.0.0/8 192.0.2.99\n0.0.0.0/0 192.0.2.11"},
		{"the main table before others", "table 100\n" + plain + "route 10.0.0.0/8 via 192.0.2.1 dev eth0 src 192.0.2.98 table 100\nroute 10.0.0.0/8 via 192.0.2.1 dev eth0 src 192.0.2.99 metric 100", "10.0.0.0/8 192.0.2.99\n0.0.0.0/0 192.0.2.11"},
		{"routes for some packets don't count", plain + "route 10.0.0.0/8 via 192.0.2.1 dev eth0 src 192.0.2.98 selective", "0.0.0.0/0 192.0.2.11"},
		{"all routes name another source than the primary address", "link eth0\naddr eth0 192.0.2.11/24\nroute 10.0.0.0/8 via 192.0.2.1 dev eth0 src 192.0.2.99\nroute 11.0.0.0/8 via 192.0.2.1 dev eth0 src 192.0.2.99", `
			10.0.0.0/8 192.0.2.99
			11.0.0.0/8 192.0.2.99
			0.0.0.0/0 192.0.2.11`},
		{"an unnumbered device has the address of lo", "link lo\naddr lo 127.0.0.1/8 scope 254\naddr lo 192.0.2.77/32\nlink eth0\nroute 10.0.0.0/8 via fe80::1 dev eth0", "0.0.0.0/0 192.0.2.77"},
		{"without routes, the address of the default route", "link docker0 kind bridge\naddr docker0 172.17.0.1/16\nlink eth0\ninclude eth0\nlink eth1\naddr eth1 192.0.2.11/24\nroute default via 192.0.2.1 dev eth1", "0.0.0.0/0 192.0.2.11"},
		{"not that of another VRF", "link red kind vrf table 10\nlink eth0\ninclude eth0\nlink eth1 master red\naddr eth1 192.0.2.11/24\nroute default via 192.0.2.1 dev eth1 table 10", ""},
		{"nor in a VRF that of others", "link lo\naddr lo 192.0.2.1/32\nlink red kind vrf table 10\nlink eth0 master red\nroute default via fe80::1 dev eth0 table 10", ""},
		{"no address at all", "link eth0\ninclude eth0", ""},
		{"IPv6: not deprecated, tentative, failed or temporary", `
			link eth0
			addr eth0 2001:db8::1/64 deprecated
			addr eth0 2001:db8::2/64 tentative
			addr eth0 2001:db8::3/64 failed
			addr eth0 2001:db8::4/64 temporary
			addr eth0 2001:db8::5/64
			route default6 via fe80::1 dev eth0`, "::/0 2001:db8::5"},
		{"IPv6: a deprecated address is better than none", "link eth0\naddr eth0 2001:db8::1/64 deprecated\nroute default6 via fe80::1 dev eth0", "::/0 2001:db8::1"},
		{"IPv6: an optimistic address", "link eth0\naddr eth0 2001:db8::1/64 optimistic\nroute default6 via fe80::1 dev eth0", "::/0 2001:db8::1"},
		{"IPv6: private destinations from a private address", `
			link eth0
			addr eth0 fd00:1::11/64
			addr eth0 2001:db8::11/64
			route default6 via fe80::1 dev eth0
			route fd00:1::/64 dev eth0
			route 2001:db8::/64 dev eth0`, "fc00::/7 fd00:1::11\n::/0 2001:db8::11"},
		{"IPv6: a route to private destinations goes first", `
			link eth0
			addr eth0 fd00:1::11/64
			addr eth0 2001:db8::11/64
			route default6 via fe80::1 dev eth0
			route fc00::/7 via fe80::1 dev eth0 src 2001:db8::11 metric 1024`, "::/0 2001:db8::11"},
		{"IPv6: the longest match", `
			link eth0
			addr eth0 2001:db8:1::1/64
			addr eth0 2001:db8:2::1/64
			route default6 via fe80::1 dev eth0
			route 2001:db8:2:5::/64 via fe80::1 dev eth0`, "2001:db8:2:5::/64 2001:db8:2::1\n::/0 2001:db8:1::1"},
		{"IPv6: an address of the destination's kind", "link eth0\naddr eth0 2002:c000:201::1/64\naddr eth0 2600::1/64\nroute default6 via fe80::1 dev eth0", "fc00::/7 2002:c000:201::1\n::/0 2600::1"},
		{"IPv6: no source for the link itself", "link eth0\naddr eth0 2001:db8::11/64\nroute fe80::/64 dev eth0 src fe80::1\nroute default6 via fe80::1 dev eth0", "::/0 2001:db8::11"},
		{"IPv6: from another device where this has none", "link lo\naddr lo 2001:db8::77/128\nlink eth0\naddr eth0 fe80::1/64\nroute default6 via fe80::2 dev eth0\nroute fe80::/64 dev eth0", "::/0 2001:db8::77"},
		{"both families by one gateway", `
			link lo
			addr lo 192.0.2.77/32
			link eth0
			addr eth0 2001:db8::11/64
			route 10.0.0.0/8 via fe80::1 dev eth0
			route default6 via fe80::1 dev eth0
			route default via fe80::1 dev eth0`, "0.0.0.0/0 192.0.2.77\n::/0 2001:db8::11"},
		{"a VRF's own addresses, not those of others", `
			link lo
			addr lo 192.0.2.1/32
			link red kind vrf table 10
			addr red 192.0.2.2/32
			link eth0 master red
			route default via fe80::1 dev eth0 table 10`, "0.0.0.0/0 192.0.2.2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			uplinks, _ := Choose(parseState(t, tc.state))
			i := slices.IndexFunc(uplinks, func(u Uplink) bool { return u.Name == "eth0" })
			if i < 0 {
				t.Fatalf("eth0 is no uplink: %v", uplinks)
			}
			if got := describeSources(uplinks[i]); got != unindent(tc.want) {
				t.Errorf("sources\n%s\nwant\n%s", got, unindent(tc.want))
			}
		})
	}
}

// What is left out of too many sources is never what other nodes need.
func TestChooseBoundsSources(t *testing.T) {
	s := parseState(t, plain+"addr eth0 192.0.2.99/32\nnode 10.250.3.7\npods 10.251.3.0/24")
	for i := range 3000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(240 + i/256), byte(i), 0}), 25)
		s.Routes = append(s.Routes, Route{Destination: p, Table: 254, Hop: &Hop{Device: 2, Source: netip.MustParseAddr("192.0.2.99")}})
	}
	for _, p := range []string{"10.250.3.0/30", "10.250.3.7/32", "10.251.3.128/26"} { // the last of all without a reason
		s.Routes = append(s.Routes, Route{Destination: netip.MustParsePrefix(p), Table: 254, Hop: &Hop{Device: 2, Source: netip.MustParseAddr("192.0.2.98")}})
	}
	uplinks, _ := Choose(s)
	u := uplinks[0]
	if len(u.Sources) != maxSources || u.Omitted != 3004-maxSources {
		t.Fatalf("%d sources and %d omitted", len(u.Sources), u.Omitted)
	}
	has := func(p string) bool {
		return slices.ContainsFunc(u.Sources, func(s Source) bool { return s.Destination.String() == p })
	}
	for _, p := range []string{"0.0.0.0/0", "10.250.3.7/32", "10.251.3.128/26"} {
		if !has(p) {
			t.Errorf("%s is omitted", p)
		}
	}
	if has("10.250.3.0/30") {
		t.Error("a long prefix that nobody needs is kept")
	}
	if got := u.Sources[0].Destination.Bits(); got != 32 {
		t.Errorf("the first prefix has %d bits", got)
	}
}

// What is read while it changes may have loops.
func TestChooseEndsWithLoops(t *testing.T) {
	s := parseState(t, "link br0 kind bridge\nlink v0 kind vlan\naddr v0 192.0.2.1/24\naddr br0 192.0.2.2/24")
	s.Links[0].Master, s.Links[1].Master, s.Links[1].Parent = 2, 1, 2
	Choose(s)
	s.Links[0].Master, s.Links[1].Parent = 0, 1
	Choose(s)
	s = parseState(t, "link br0 kind bridge\nlink br1 kind bridge\nlink br2 kind bridge\naddr br2 192.0.2.1/24")
	s.Links[0].Master, s.Links[1].Master = 2, 1
	s.Links[2].Master = 3
	s.Links = append(s.Links, Link{Name: "v0", Index: 4, Kind: "vlan", Parent: 1})
	s.Addrs = append(s.Addrs, Addr{Device: 4, Local: netip.MustParseAddr("192.0.2.1"), Net: netip.MustParsePrefix("192.0.2.1/24")})
	Choose(s)
}

// Routes of two tables may share a next hop.
func TestChooseWithSharedHops(t *testing.T) {
	s := parseState(t, "link eth0\nlink lo\naddr lo 192.0.2.77/32")
	hop := &Hop{Device: 1, Gateway: netip.MustParseAddr("fe80::1")}
	s.Routes = []Route{{Destination: all4, Table: 4711, Hop: hop}, {Destination: netip.MustParsePrefix("10.0.0.0/8"), Table: 254, Hop: hop}}
	if got := describe(Choose(s)); got != "eth0: route by a gateway" {
		t.Errorf("a table that counts: %s", got)
	}
	s.Routes[0].Table, s.Routes[1].Table = 254, 4711
	if got := describe(Choose(s)); got != "eth0: default route" {
		t.Errorf("one that counts and then one that does not: %s", got)
	}
	s.Routes[1].Destination, s.Routes[0].Destination = s.Routes[0].Destination, s.Routes[1].Destination
	if got := describe(Choose(s)); got != "eth0: route by a gateway" {
		t.Errorf("a default route of a table that does not count: %s", got)
	}
}

func TestNamesValidate(t *testing.T) {
	if err := (Names{Include: []string{"eth*"}, Exclude: []string{"[a"}}).Validate(); err == nil || !strings.Contains(err.Error(), "[a") {
		t.Error(err)
	}
	if err := (Names{Include: []string{"eth*"}, Exclude: []string{"[ab]"}}).Validate(); err != nil {
		t.Error(err)
	}
}
