package natinit

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

// toVIP is one way in which applications reach a Service.
type toVIP struct {
	name   string
	mode   clients.Mode
	vip    string
	mapped bool
}

func waysToVIP() []toVIP {
	return []toVIP{
		{"TCP over IPv4", clients.TCP, vip4, false},
		{"TCP over IPv6", clients.TCP, vip6, false},
		{"TCP to a v4-mapped address", clients.TCP, vip4, true},
		{"connected UDP over IPv4", clients.UDPConnected, dns4, false},
		{"connected UDP over IPv6", clients.UDPConnected, dns6, false},
		{"connected UDP to a v4-mapped address", clients.UDPConnected, dns4, true},
		{"unconnected UDP over IPv4", clients.UDPUnconnected, dns4, false},
		{"unconnected UDP over IPv6", clients.UDPUnconnected, dns6, false},
		{"unconnected UDP to a v4-mapped address", clients.UDPUnconnected, dns4, true},
	}
}

func (w toVIP) options() []clients.Option {
	if w.mapped {
		return []clients.Option{clients.Mapped}
	}
	return nil
}

// seen is an address as a socket of this kind shows it.
func (w toVIP) seen(ap string) string {
	a := netip.MustParseAddrPort(ap)
	if w.mapped {
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port()).String()
	}
	return a.String()
}

// rungs are kernels that lack something, each played by a newer one.
func rungs() map[string]bpf.Features {
	return map[string]bpf.Features{
		"with everything":     allFeatures(),
		"without bpf_link":    without(func(f *bpf.Features) { f.Link = false }),
		"without getpeername": without(func(f *bpf.Features) { f.GetPeername = false }),
		"without set_retval":  without(func(f *bpf.Features) { f.SetRetval = false }),
		"on the floor":        {},
	}
}

func TestSocketsReachTheServiceOnEveryRung(t *testing.T) {
	all := []clients.Program{goClient(t), clients.Python(t)}
	for name, f := range rungs() {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.up(t, f, bpf.Balancer{UDP: true}, services(0, 1, 2))
			programs := all
			if name != "with everything" {
				programs = all[:1]
			}
			for _, p := range programs {
				for _, w := range waysToVIP() {
					t.Run(p.Name+"/"+w.name, func(t *testing.T) { n.checkWay(t, f, p, w) })
				}
			}
			n.checkRefused(t, f, all[0])
			n.checkLeftAlone(t, all[0])
		})
	}
}

func (n *node) checkWay(t *testing.T, f bpf.Features, p clients.Program, w toVIP) {
	for _, e := range p.Run(t, n.l, w.mode, w.vip, "hello", append(w.options(), clients.Count(3))...) {
		if e.Error != "" || !strings.HasPrefix(e.Server(), "backend-") {
			t.Fatalf("got %+v", e)
		}
		if w.mode != clients.TCP && e.From != w.seen(w.vip) {
			t.Errorf("the answer came from %s, want %s", e.From, w.seen(w.vip))
		}
		if w.mode == clients.UDPUnconnected {
			continue
		}
		if f.GetPeername && e.Peer != w.seen(w.vip) {
			t.Errorf("getpeername says %s, want %s", e.Peer, w.seen(w.vip))
		}
		if !f.GetPeername && (e.Peer == w.seen(w.vip) || e.Peer == "") {
			t.Errorf("getpeername says %s, want a backend", e.Peer)
		}
	}
}

// An unserved port of a VIP is refused at once, as by a kube-proxy's RST. UDP is led nowhere.
func (n *node) checkRefused(t *testing.T, f bpf.Features, p clients.Program) {
	t.Helper()
	want := "ECONNREFUSED"
	if !f.SetRetval {
		want = "EPERM"
	}
	for _, tc := range []struct {
		mode clients.Mode
		call string
		addr string
		opts []clients.Option
	}{
		{clients.TCP, "connect", "10.96.0.1:444", nil},
		{clients.TCP, "connect", "10.96.0.1:444", []clients.Option{clients.Mapped}},
		{clients.TCP, "connect", "[fd00:96::1]:444", nil},
		{clients.TCP, "connect", dns4, nil}, // UDP alone is served there
	} {
		e := p.Run(t, n.l, tc.mode, tc.addr, "hello", tc.opts...)[0]
		if e.Error != tc.call+" "+want {
			t.Errorf("%s: %s to %s %v: %+v, want %s", p.Name, tc.mode, tc.addr, tc.opts, e, want)
		}
	}
	for _, w := range udpWays() {
		n.wantNowhere(t, f, n.l, w.at("10.96.0.10:54", "[fd00:96::10]:54"))
		n.wantNowhere(t, f, n.l, w.at(vip4, vip6)) // TCP alone is served there
	}
}

// Addresses that nobody seeded go where they say.
func (n *node) checkLeftAlone(t *testing.T, p clients.Program) {
	t.Helper()
	for addr, want := range map[string]string{"10.96.0.99:443": "connect ENETUNREACH", "[fd00:96::99]:443": "connect ENETUNREACH", "192.0.2.11:1": "connect ECONNREFUSED"} {
		if e := p.Run(t, n.l, clients.TCP, addr, "hello")[0]; e.Error != want {
			t.Errorf("%s: %s: %+v, want %s", p.Name, addr, e, want)
		}
	}
	direct := netip.AddrPortFrom(backend4(1), 6443).String()
	if e := p.Run(t, n.l, clients.TCP, direct, "hello")[0]; e.Error != "" || e.Peer != direct || e.Server() != "backend-1" {
		t.Errorf("%s: directly to %s: %+v", p.Name, direct, e)
	}
	direct = netip.AddrPortFrom(backend6(1), 5353).String()
	if e := p.Run(t, n.l, clients.UDPUnconnected, direct, "hello")[0]; e.Error != "" || e.From != direct {
		t.Errorf("%s: directly to %s: %+v", p.Name, direct, e)
	}
}

// All backends get their share: a slot that is never chosen would be a dead one.
func TestSocketsAreSpreadOverAllBackends(t *testing.T) {
	n := newNode(t)
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, services(0, 1, 2))
	seen := map[string]int{}
	const connects = 300
	for _, e := range goClient(t).Run(t, n.l, clients.TCP, vip4, "hello", clients.Count(connects)) {
		seen[e.Server()]++
	}
	for i := range backends {
		// 100 expected, deviation 8: five deviations off would be one run in a million.
		if got := seen["backend-"+string(rune('0'+i))]; got < 60 || got > 140 {
			t.Errorf("of %d connects: %v", connects, seen)
		}
	}
}

func TestSocketsOutsideTheCgroupAreLeftAlone(t *testing.T) {
	n := newNode(t)
	inside, err := n.l.NewCgroup("inside")
	must(t, err)
	n.cgroup = inside
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, services(0))
	if e := goClient(t).Run(t, n.l, clients.TCP, vip4, "hello")[0]; e.Error != "connect ENETUNREACH" {
		t.Errorf("a process of the parent cgroup: %+v", e)
	}
	if conn, err := n.l.DialContext(t.Context(), "tcp", vip4); err == nil {
		conn.Close()
		t.Error("a process outside of the hierarchy was translated")
	}
	if e := goClient(t).Run(t, inCgroup{n.l, inside}, clients.TCP, vip4, "hello")[0]; e.Error != "" {
		t.Errorf("a process of the cgroup itself: %+v", e)
	}
}

func TestSocketsWithoutUDP(t *testing.T) {
	n := newNode(t)
	b := bpf.Balancer{}
	n.up(t, allFeatures(), b, services(0, 1))
	n.wantOnce(t, allFeatures(), b, best())
	if hooks := attachedTo(t, n.cgroup); len(hooks) != len(b.Hooks(allFeatures())) {
		t.Errorf("attached at %v, want connect, and getpeername where there is that", hooks)
	}
	p := goClient(t)
	for _, w := range waysToVIP() {
		e := p.Run(t, n.l, w.mode, w.vip, "hello", w.options()...)[0]
		if ok := e.Error == ""; ok != (w.mode == clients.TCP) {
			t.Errorf("%s: %+v", w.name, e)
		}
	}
	// Switched on, and off again.
	for _, b := range []bpf.Balancer{{UDP: true}, {}} {
		n.up(t, allFeatures(), b, services(0, 1))
		n.wantOnce(t, allFeatures(), b, best())
		e := p.Run(t, n.l, clients.UDPUnconnected, dns4, "hello")[0]
		if (e.Error == "") != b.UDP {
			t.Errorf("with %+v: %+v", b, e)
		}
	}
}

// A QUIC client must not change its server with each datagram.
func TestSocketsOfUDPKeepTheirBackend(t *testing.T) {
	for _, vip := range []string{dns4, dns6} {
		t.Run(vip, func(t *testing.T) {
			n := newNode(t)
			b := bpf.Balancer{UDP: true}
			n.up(t, allFeatures(), b, services(0, 1, 2))
			sock := n.openUDP(t, vip)
			first, _ := sock.exchange()
			keeps := func(when string) {
				t.Helper()
				for range 12 {
					if server, from := sock.exchange(); server != first || from != vip {
						t.Errorf("%s: answered by %s from %s, want %s from %s", when, server, from, first, vip)
					}
				}
			}
			keeps("nothing changes")
			own := int(first[len(first)-1] - '0')
			for _, which := range [][]int{{own}, {0, 1, 2}, {(own + 1) % 3, own}} {
				n.up(t, allFeatures(), b, services(which...))
				keeps("other backends come and go")
			}
			n.up(t, allFeatures(), b, services((own+1)%3))
			if server, from := sock.exchange(); server == first || from != vip {
				t.Errorf("its backend is gone, and %s answers from %s", server, from)
			}
			n.up(t, allFeatures(), b, services(0, 1, 2))
			first, _ = sock.exchange()
			keeps("all are back")
		})
	}
}

// Without members in the sets, each datagram goes its own way: Sticky is what keeps them together.
func TestSocketsOfUDPWithoutStickiness(t *testing.T) {
	n := newNode(t)
	svcs := services(0, 1, 2)
	for i := range svcs {
		svcs[i].Sticky = false
	}
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, svcs)
	sock := n.openUDP(t, dns4)
	var seen []string
	for range 60 {
		server, from := sock.exchange()
		seen = append(seen, server)
		if from != dns4 {
			t.Errorf("%s answers from %s", server, from)
		}
	}
	slices.Sort(seen)
	if distinct := slices.Compact(seen); len(distinct) != backends {
		t.Errorf("60 datagrams went to %v", distinct)
	}
}

// getpeername may name the backend: connect runs for the first subflow, getpeername for the socket above it, and from the
// one's cookie nothing on the floor leads to the other's (net/mptcp/protocol.c, mptcp_connect).
func TestSocketsOfMPTCPAreTranslated(t *testing.T) {
	n := newNode(t)
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, services(0))
	out := n.special(t, `
for family, vip in ((socket.AF_INET, "10.96.0.1"), (socket.AF_INET6, "fd00:96::1"), (socket.AF_INET6, "::ffff:10.96.0.1")):
    try:
        s = socket.socket(family, socket.SOCK_STREAM, 262)
    except OSError as e:
        print("no MPTCP", errno.errorcode[e.errno])
        break
    s.settimeout(5)
    s.connect((vip, 443))
    s.sendall(b"hello\n")
    print(s.getpeername()[0] in (vip, "192.0.2.11", "2001:db8::11", "::ffff:192.0.2.11"), b"backend-0" in s.recv(4096))
`)
	if strings.HasPrefix(out, "no MPTCP") {
		lab.NeedsLinux(t, 6, 1, "MPTCP, which Debian's 5.10 is built without")
		t.Skip(out)
	}
	const want = "True True\nTrue True\nTrue True"
	if out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}

// Raw sockets and ping have no ports: what they name is what they get.
func TestSocketsOfOtherProtocolsAreLeftAlone(t *testing.T) {
	n := newNode(t)
	must(t, n.l.AddAddr("10.96.0.1/32", "fd00:96::1/128"))
	must(t, n.l.Sysctl("net.ipv4.ping_group_range", "0 2147483647"))
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, services(0))
	out := n.special(t, `
for family, kind, proto, vip in (
    (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP, "10.96.0.1"),
    (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP, "10.96.0.1"),
    (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6, "fd00:96::1"),
    (socket.AF_INET, socket.SOCK_DGRAM, 136, "10.96.0.1"),
):
    try:
        s = socket.socket(family, kind, proto)
    except OSError as e:
        print("none", errno.errorcode[e.errno])
        continue
    s.connect((vip, 443))
    print(s.getpeername()[0])
`)
	for i, want := range []string{"10.96.0.1", "10.96.0.1", "fd00:96::1", "10.96.0.1"} {
		lines := strings.Split(out, "\n")
		if i >= len(lines) || lines[i] != want && !(i == 3 && strings.HasPrefix(lines[i], "none")) { // UDP-Lite left with 7.1
			t.Errorf("socket %d: got %q, want %s", i, lines, want)
		}
	}
}
