package wire

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bpf"
)

// dnat are rules that serve the routed pod's Service as kube-proxy does, with conntrack's help.
func dnat() ruleSet {
	var rules strings.Builder
	for _, f := range families {
		family, backend := "ip", f.backend(routed).String()
		if f.name == v6.name {
			family = "ip6"
		}
		for _, proto := range []string{"tcp", "udp"} {
			fmt.Fprintf(&rules, "%s daddr %s %s dport %d dnat %s to %s\n", family, f.vip, proto, routed.port(), family, backend)
		}
	}
	return ruleSet{name: "DNAT", rules: `table inet proxy {
	chain forward { type filter hook forward priority 0; policy accept; ct state invalid drop; }
	chain prerouting { type nat hook prerouting priority -100; policy accept;
	` + rules.String() + "}\n}"}
}

// Connections that another service proxy has begun live on when the programs come, and when its rules go: theirs are those
// that netfilter knows. New ones are the programs'.
func TestConnectionsOfAFormerProxyLiveOn(t *testing.T) {
	b := newTopology(t)
	b.table = newTable(t, b)
	b.uplinks = newUplinks(t, b, haveTCX())
	b.serve(t)
	b.watch(t)
	b.netfilter(t, dnat())
	var conns, sockets []net.Conn
	for _, f := range families {
		to := f.frontend(routed)
		c, err := dial(b.client, "tcp", fresh(to), to)
		must(t, err)
		defer c.Close()
		conns = append(conns, c)
		u, err := dial(b.client, "udp", fresh(to), to)
		must(t, err)
		defer u.Close()
		sockets = append(sockets, u)
	}
	use := func() {
		t.Helper()
		for i, f := range families {
			who, err := ask(conns[i], askWho)
			must(t, err)
			must(t, b.seen(f, routed, addrPort(conns[i].LocalAddr()), who))
			must(t, b.talkUDP(f, sockets[i], routed, 5, 100))
		}
	}
	use()
	for i, f := range families { // as the runtime does, which reads netfilter's table
		b.put(t, bpf.MapConntrack, bpf.FlowKeyOf(addrPort(sockets[i].LocalAddr()), f.frontend(routed), bpf.UDP, bpf.WayIn), bpf.Flow{Flags: bpf.FlowStack})
	}
	b.attach(t)
	use()
	if n := b.count(t, bpf.CountFlow); n != 0 {
		t.Errorf("the programs have begun %d flows, want none yet", n)
	}
	must(t, b.tryAll(b.client, byFirstUplink))
	if n := b.count(t, bpf.CountFlow); n == 0 {
		t.Error("the programs have begun no flow")
	}
	// The proxy's rules go, a CNI's stay: the kernel translates what it knows while anybody has rules for translation.
	b.nft(t, `table inet other {
	chain forward { type filter hook forward priority 0; policy accept; ct state invalid drop; }
	chain postrouting { type nat hook postrouting priority 100; policy accept; meta mark 0x4000 masquerade; }
	}`)
	for i, f := range families {
		who, err := ask(conns[i], askWho)
		must(t, err)
		must(t, b.seen(f, routed, addrPort(conns[i].LocalAddr()), who))
		must(t, echo(conns[i], 100_000))
	}
}

// What is no Service's is not touched: servers of the node, and connections that the node and its pods make.
func TestOthersAreUntouched(t *testing.T) {
	b := newBench(t)
	s := b.serve(t)
	outside := func(f family) netip.AddrPort { return netip.AddrPortFrom(f.client, target) }
	for _, f := range families {
		s.tcp(t, b.node, netip.AddrPortFrom(f.node, nodesOwnPort))
		s.udp(t, b.node, netip.AddrPortFrom(f.node, nodesOwnPort))
		s.tcp(t, b.client, outside(f))
		s.udp(t, b.client, outside(f))
		for _, k := range []kind{routed, bridged, remote, overlay, second} {
			gateway := f.node
			if !k.local() {
				gateway = map[string]netip.Addr{v4.name: addr("198.51.100.12"), v6.name: addr("2001:db8:1::12")}[f.name]
			}
			route(t, b.router, bits(f.backends[k]), gateway.String())
		}
	}
	for _, device := range []string{"node", "node1"} {
		sniff(t, "the way out of the node", b.router, device, func(frame) error { return nil })
	}
	for _, f := range families {
		to := netip.AddrPortFrom(f.node, nodesOwnPort)
		must(t, b.tryTCP(f, b.client, host, to)) // as of a local endpoint: the server sees the client itself
		must(t, b.tryUDP(f, b.client, host, to, 3, long))
		for _, m := range []machine{b.node, b.routed, b.bridged} {
			must(t, b.tryTCP(f, m, host, outside(f)))
			must(t, b.tryUDP(f, m, host, outside(f), 3, 100))
		}
		for _, k := range []kind{remote, overlay, second} { // to pods elsewhere
			must(t, b.tryTCP(f, b.node, host, f.backend(k)))
			must(t, b.tryTCP(f, b.routed, host, f.backend(k)))
		}
	}
	if n := b.count(t, bpf.CountFlow); n != 0 {
		t.Errorf("the programs have begun %d flows, want none", n)
	}
	if dropped := b.dropped(t); len(dropped) > 0 {
		t.Errorf("dropped %v", dropped)
	}
}

// Clients of the source ranges get through, and a Local policy leads to the node's own endpoints only.
func TestPoliciesChooseEndpoints(t *testing.T) {
	b := newBench(t)
	b.serve(t)
	b.watch(t)
	for _, f := range families {
		ranged, local := netip.AddrPortFrom(f.vip, 8201), netip.AddrPortFrom(f.vip, 8202)
		index := b.service(t, []netip.AddrPort{ranged}, bpf.TCP, bpf.FrontendExternal|bpf.FrontendExternalRange, backend{f.backend(routed), true})
		prefix, err := f.client.Prefix(f.client.BitLen() / 2) // without the neighbour
		must(t, err)
		b.put(t, bpf.MapSourceRange, bpf.SourceRangeKeyOf(index, prefix), uint8(0))
		must(t, b.tryTCP(f, b.client, routed, ranged))
		must(t, silent(b.neighbour, "tcp", ranged))
		b.service(t, []netip.AddrPort{local}, bpf.TCP, bpf.FrontendExternal|bpf.FrontendExternalLocal, backend{f.backend(remote), false}, backend{f.backend(routed), true}, backend{f.backend(bridged), true})
		for range 10 {
			must(t, b.tryTCP(f, b.client, routed, local))
		}
	}
}

// A client's port may be used again at once for a connection to another endpoint, after all ways to end.
func TestAnswersAreNotMixedUp(t *testing.T) {
	b := newBench(t)
	b.serve(t)
	b.watch(t)
	for _, f := range families {
		to := netip.AddrPortFrom(f.vip, 8203)
		var all []backend
		for _, k := range kinds {
			all = append(all, backend{f.backend(k), k.local()})
		}
		b.service(t, []netip.AddrPort{to}, bpf.TCP, bpf.FrontendExternal, all...)
		from := fresh(to)
		for range 30 {
			c, err := dialAgain(b.client, from, to)
			must(t, err)
			_, err = c.Write([]byte{askGoodby})
			must(t, err)
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("read: %v", err)
			}
			must(t, c.Close())
		}
	}
}
