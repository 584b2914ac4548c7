package natinit

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/clients"
)

// streams has a function for TCP sockets beside those for UDP: who answered, as whom, or the error.
const streams = datagrams + `
def tcp(host, port, bind=None):
    s = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, socket.SOCK_STREAM)
    s.settimeout(20)
    if bind: s.bind((bind, 0))
    r = name(s.connect, (host, port))
    if r != 'ok': return r
    s.sendall(b'hello\n')
    return json.loads(s.makefile().readline())['server'] + ' ' + ap(s.getpeername())
def dgram(host, port, bind=None):
    s = udp(host, bind)
    r = name(s.connect, (host, port))
    if r != 'ok': return r
    s.send(b'hello\n')
    r = name(heard, s)
    return r if ' ' not in r else r.split()[1] + ' ' + ap(s.getpeername())
def sendto(host, port, bind=None):
    s = udp(host, bind)
    r = name(s.sendto, b'hello\n', (host, port))
    if r != 'ok': return r
    r = name(heard, s)
    return r if ' ' not in r else r.split()[1] + ' ' + r.split()[0]
`

// asks runs calls of streams in one process, and returns what each gives.
func asks(t testing.TB, m clients.Machine, calls []string) []string {
	t.Helper()
	return strings.Split(special(t, m, streams+"print("+strings.Join(calls, ", ")+", sep='\\n')"), "\n")
}

// serveNodePorts gives each service a node port at the loopback addresses of its family.
func (n *node) serveNodePorts(t testing.TB, port uint16, elsewhere netip.Addr, which ...int) *bpf.Maps {
	t.Helper()
	svcs := services(which...)
	for i := range svcs {
		k := svcs[i].Frontends[0]
		svcs[i].Frontends = append(svcs[i].Frontends, bpf.LoopbackKey(k.Addr.Addr().Is4(), port, k.Proto))
	}
	m := n.serve(t, bpf.Balancer{UDP: true, HostNetns: netnsCookie(t, n.l)}, svcs...)
	if elsewhere.IsValid() { // the backends are addresses of other machines
		must(t, m.Map(bpf.MapWorkload).Put(netnsCookie(t, n.l), bpf.Workload{Addr4: bpf.AddressOf(elsewhere), Addr6: bpf.AddressOf(elsewhere)}))
	}
	return m
}

func TestNodePortsAtAllThatLeadsToLoopback(t *testing.T) {
	n := newNode(t)
	n.serveNodePorts(t, 30080, netip.Addr{}, 0)
	pod := n.newPod(t, 1)
	var calls, want []string
	for host, seen := range map[string]string{
		"127.0.0.1": "127.0.0.1:30080", "127.9.8.7": "127.9.8.7:30080", "0.0.0.0": "127.0.0.1:30080",
		"::1": "[::1]:30080", "::": "[::1]:30080", "::ffff:127.0.0.1": "[::ffff:127.0.0.1]:30080",
		"::ffff:127.9.8.7": "[::ffff:127.9.8.7]:30080", "::ffff:0.0.0.0": "[::ffff:127.0.0.1]:30080",
	} {
		for _, call := range []string{"tcp", "dgram", "sendto"} {
			calls = append(calls, fmt.Sprintf("%s(%q, 30080)", call, host))
			want = append(want, "backend-0 "+seen)
		}
	}
	for i, got := range asks(t, n.l, calls) {
		if got != want[i] && (allFeatures().GetPeername || strings.HasPrefix(calls[i], "sendto")) {
			t.Errorf("%s: %s, want %s", calls[i], got, want[i])
		}
	}
	for i, got := range asks(t, pod, calls) {
		if strings.HasPrefix(got, "backend") {
			t.Errorf("in a pod, whose loopback address is its own: %s: %s", calls[i], got)
		}
	}
}

// A socket that is bound to loopback doesn't get off the node: nothing may wait for an answer that can't come.
func TestSocketsBoundToLoopback(t *testing.T) {
	n := newNode(t)
	tcpRefused := "EHOSTUNREACH"
	if !allFeatures().SetRetval {
		tcpRefused = "EPERM"
	}
	if !allFeatures().ContextSock {
		t.Skip("this kernel doesn't show what a socket is bound to")
	}
	type row struct{ call, want string }
	check := func(when string, rows ...row) {
		t.Helper()
		var calls []string
		for _, r := range rows {
			calls = append(calls, r.call)
		}
		for i, got := range asks(t, n.l, calls) {
			if got, _, _ = strings.Cut(got, " "); got != rows[i].want {
				t.Errorf("%s: %s: %s, want %s", when, calls[i], got, rows[i].want)
			}
		}
	}
	rows := func(four, fourUDP, six, sixUDP, port, portUDP string) (list []row) {
		return []row{
			{"tcp('10.96.0.1', 443, bind='127.0.0.1')", four}, {"tcp('::ffff:10.96.0.1', 443, bind='::ffff:127.0.0.1')", four},
			{"dgram('10.96.0.10', 53, bind='127.0.0.1')", fourUDP}, {"sendto('10.96.0.10', 53, bind='127.0.0.1')", fourUDP},
			{"tcp('fd00:96::1', 443, bind='::1')", six}, {"dgram('fd00:96::10', 53, bind='::1')", sixUDP},
			{"sendto('fd00:96::10', 53, bind='::1')", sixUDP},
			{"tcp('127.0.0.1', 30080, bind='127.0.0.1')", port}, {"dgram('127.0.0.1', 30080, bind='127.0.0.1')", portUDP},
			{"sendto('127.0.0.1', 30080, bind='127.0.0.1')", portUDP}, {"tcp('::1', 30080, bind='::1')", port},
		}
	}
	n.serveNodePorts(t, 30080, netip.MustParseAddr("192.0.2.99"), 0)
	n.newPod(t, 1)
	must(t, n.l.Do(func() error { // a way off the node, by which the kernel sends nothing that comes from loopback
		veth, err := netlink.LinkByName("fh-pod1")
		if err != nil {
			return err
		}
		_, dst, _ := net.ParseCIDR("10.96.0.0/16")
		return netlink.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: veth.Attrs().Index})
	}))
	check("the backends are elsewhere", rows("EINVAL", "EINVAL", tcpRefused, "ECONNREFUSED", "ECONNREFUSED", "ECONNREFUSED")...)
	m := n.serveNodePorts(t, 30080, netip.Addr{}, 0)
	must(t, m.Map(bpf.MapWorkload).Put(netnsCookie(t, n.l), bpf.Workload{Addr4: bpf.AddressOf(backend4(0)), Addr6: bpf.AddressOf(backend6(0))}))
	check("the backends are on the node", rows("backend-0", "backend-0", "backend-0", "backend-0", "backend-0", "backend-0")...)
}

func TestSourceRangesJudgeTheBoundAddress(t *testing.T) {
	n := newNode(t)
	svcs := services(0)
	for i, r := range []string{"198.51.100.8/32", "2001:db8:1::8/128", "198.51.100.8/32", "2001:db8:1::8/128"} {
		k := svcs[i].Frontends[0]
		svcs[i].Flags = map[bpf.FrontendKey]bpf.FrontendFlags{k: bpf.FrontendSourceRange}
		svcs[i].SourceRanges = []netip.Prefix{netip.MustParsePrefix(r)}
	}
	m := n.serve(t, bpf.Balancer{UDP: true}, svcs...)
	var addrs []netip.Addr
	for _, a := range []string{"198.51.100.1", "198.51.100.8", "2001:db8:1::1", "2001:db8:1::8"} {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	pod, err := n.l.AddPod("pod1", addrs...)
	must(t, err)
	want := "EHOSTUNREACH"
	if !allFeatures().SetRetval {
		want = "EPERM"
	}
	for _, own := range []int{1, 8} { // which of its addresses is known as the pod's
		must(t, m.Map(bpf.MapWorkload).Put(netnsCookie(t, pod), bpf.Workload{
			Addr4: bpf.AddressOf(netip.AddrFrom4([4]byte{198, 51, 100, byte(own)})),
			Addr6: bpf.AddressOf(netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", own))),
		}))
		for _, bound := range []int{0, 1, 8} {
			var calls []string
			for _, to := range []struct{ call, host, src string }{
				{"tcp", "10.96.0.1", "198.51.100."}, {"tcp", "::ffff:10.96.0.1", "::ffff:198.51.100."}, {"tcp", "fd00:96::1", "2001:db8:1::"},
				{"dgram", "10.96.0.10", "198.51.100."}, {"dgram", "::ffff:10.96.0.10", "::ffff:198.51.100."}, {"dgram", "fd00:96::10", "2001:db8:1::"},
				{"sendto", "10.96.0.10", "198.51.100."}, {"sendto", "::ffff:10.96.0.10", "::ffff:198.51.100."}, {"sendto", "fd00:96::10", "2001:db8:1::"},
			} {
				bind := "None"
				if bound != 0 {
					bind = fmt.Sprintf("%q", fmt.Sprint(to.src, bound))
				}
				calls = append(calls, fmt.Sprintf("%s(%q, %d, bind=%s)", to.call, to.host, map[bool]int{true: 443, false: 53}[to.call == "tcp"], bind))
			}
			for i, got := range asks(t, pod, calls) {
				is := "backend-0"
				seen := allFeatures().ContextSock || strings.HasPrefix(calls[i], "sendto")
				switch allowed := bound == 8 && seen || (bound == 0 || !seen) && own == 8; {
				case allowed:
				case strings.HasPrefix(calls[i], "tcp"):
					is = want
				default:
					is = "ECONNREFUSED"
				}
				if got, _, _ = strings.Cut(got, " "); got != is {
					t.Errorf("the pod is known as %d: %s: %s, want %s", own, calls[i], got, is)
				}
			}
		}
	}
}

func TestNodePortsAtOtherNodes(t *testing.T) {
	n := newNode(t)
	svcs := services(0)
	for i := range svcs {
		k := svcs[i].Frontends[0]
		svcs[i].Frontends = append(svcs[i].Frontends, bpf.NodePortKey(k.Addr.Addr().Is4(), 30080, k.Proto))
	}
	m := n.serve(t, bpf.Balancer{UDP: true}, svcs...)
	pod := n.newPod(t, 1)
	must(t, n.l.AddAddr("203.0.113.7/32")) // it is not: so that what is left alone fails at once
	must(t, n.l.AddAddr("2001:db8:2::7/128"))
	ask := func(port int, kinds ...string) []string {
		var calls []string
		for _, host := range []string{"203.0.113.7", "::ffff:203.0.113.7", "2001:db8:2::7"} {
			for _, call := range kinds {
				calls = append(calls, fmt.Sprintf("%s(%q, %d)", call, host, port))
			}
		}
		return append(asks(t, pod, calls), asks(t, n.l, calls)...)
	}
	want := func(when string, port int, server string, kinds ...string) {
		t.Helper()
		for _, got := range ask(port, kinds...) {
			if got, _, _ = strings.Cut(got, " "); got != server {
				t.Errorf("%s: %s, want %s", when, got, server)
			}
		}
	}
	want("no node is known", 30080, "ECONNREFUSED", "tcp") // the kernel sends a pod but a few ICMP errors a second
	for _, addr := range []string{"203.0.113.7", "2001:db8:2::7"} {
		must(t, m.Map(bpf.MapFrontend).Put(bpf.NodeKeyOf(netip.MustParseAddr(addr)), bpf.Frontend{Flags: bpf.FrontendNode}))
	}
	want("at another node", 30080, "backend-0", "tcp", "dgram", "sendto")
	want("another port", 30081, "ECONNREFUSED", "tcp")
	if got := asks(t, pod, []string{"dgram('203.0.113.7', 30080)"})[0]; got != "backend-0 203.0.113.7:30080" && allFeatures().GetPeername {
		t.Errorf("the peer's name: %s", got)
	}
}

// What the hash of UDP sockets has no room for goes to the LRU hash beside it, and is counted.
func TestUDPSocketsOverflow(t *testing.T) {
	n := newNode(t)
	m := n.serve(t, bpf.Balancer{UDP: true}, services(0, 1, 2)...)
	for name, key := range map[bpf.MapName]any{bpf.MapUDPSockRevNat: bpf.UDPRevNatKey{}, bpf.MapUDPSockAffinity: bpf.SockAffinityKey{}} {
		fillSockets(t, m, name, key)
	}
	usage := func(which uint32) (u bpf.SockUsage) {
		t.Helper()
		must(t, m.Map(bpf.MapSockUsage).Lookup(which, &u))
		return u
	}
	before := [2]bpf.SockUsage{usage(bpf.SockUsageRevNat), usage(bpf.SockUsageAffinity)}
	s := n.openUDP(t, dns4)
	server, from := s.exchange()
	for range 20 {
		if again, at := s.exchange(); again != server || at != from || at != dns4 {
			t.Errorf("answered by %s at %s, before by %s at %s", again, at, server, from)
		}
	}
	for i, was := range before {
		is := usage(uint32(i))
		if is.Overflowed != was.Overflowed+1 || is.Inserted != was.Inserted {
			t.Errorf("usage %d was %+v, is %+v: want one that overflowed", i, was, is)
		}
	}
	removeAll(t, m, bpf.MapUDPSockRevNat)
	removeAll(t, m, bpf.MapUDPSockAffinity)
	for range 20 { // room again: what it keeps stays as it is
		if again, at := s.exchange(); again != server || at != dns4 {
			t.Errorf("with room again: answered by %s at %s, before by %s", again, at, server)
		}
	}
	if is := usage(bpf.SockUsageRevNat); is.Inserted != before[0].Inserted+1 {
		t.Errorf("usage was %+v, is %+v: want one that found room", before[0], is)
	}
}

// fillSockets puts entries of sockets that are no more until nothing fits.
func fillSockets(t testing.TB, maps *bpf.Maps, name bpf.MapName, key any) {
	t.Helper()
	m := maps.Map(name)
	for cookie := uint64(1) << 62; ; cookie++ {
		var err error
		switch k := key.(type) {
		case bpf.UDPRevNatKey:
			k.Cookie = cookie
			err = m.Put(k, bpf.UDPRevNat{})
		case bpf.SockAffinityKey:
			k.Cookie = cookie
			err = m.Put(k, bpf.SockAffinity{})
		}
		if err != nil {
			return
		}
	}
}

// removeAll removes all entries.
func removeAll(t testing.TB, maps *bpf.Maps, name bpf.MapName) {
	t.Helper()
	m := maps.Map(name)
	var keys [][]byte // first: a search for the first key passes all places that are empty by now
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	it := m.Iterate()
	for it.Next(&key, &value) {
		keys = append(keys, bytes.Clone(key))
	}
	must(t, it.Err())
	for _, k := range keys {
		must(t, m.Delete(k))
	}
}
