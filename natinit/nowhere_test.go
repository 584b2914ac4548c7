package natinit

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

// datagrams has functions for UDP sockets as applications use them. Errors that the kernel hears of by ICMP are reported to
// unconnected sockets, too (IP_RECVERR), so that nothing need be waited for.
const datagrams = `
import ctypes, ipaddress, json
def udp(host, bind=None, device=None, pktinfo=None):
    a = ipaddress.ip_address(host)
    s = socket.socket(socket.AF_INET if a.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    s.settimeout(20)
    if a.version == 4 or a.ipv4_mapped: s.setsockopt(socket.IPPROTO_IP, 11, 1)
    if a.version == 6: s.setsockopt(socket.IPPROTO_IPV6, 25, 1)
    if device: s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    if bind: s.bind((bind, 0))
    return s
def name(call, *args):
    try:
        r = call(*args)
        return r if isinstance(r, str) else 'ok'
    except socket.timeout: return 'timeout'
    except OSError as e: return errno.errorcode[e.errno]
def ap(sockaddr):
    return '[%s]:%d' % sockaddr[:2] if ':' in sockaddr[0] else '%s:%d' % sockaddr[:2]
def heard(s):
    data, sender = s.recvfrom(4096)
    return ap(sender) + ' ' + json.loads(data)['server']
def connected(host, port, **how):
    s = udp(host, **how)
    r = name(s.connect, (host, port))
    if r != 'ok': return r
    r = ap(s.getpeername())
    s.send(b'hello\n')
    return r + ' ' + name(s.recv, 4096)
def unconnected(host, port, **how):
    s = udp(host, **how)
    r = name(s.sendto, b'hello\n', (host, port))
    return r if r != 'ok' else 'sent ' + name(s.recv, 4096)
def dissolve(s):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(s.fileno(), bytes(16), 16): raise OSError(ctypes.get_errno(), 'connect')
`

// talker is a Python program that says something and waits to be asked for more.
type talker struct {
	t     testing.TB
	in    io.WriteCloser
	lines *bufio.Scanner
	begun bool
}

// startTalker starts one in the lab: what it says is what it gives to say().
func (n *node) startTalker(t testing.TB, script string) *talker {
	t.Helper()
	const say = `
import sys
def say(*words):
    print(*words, flush=True)
    sys.stdin.readline()
`
	cmd := n.l.Command(t.Context(), "python3", "-c", "import socket, errno\n"+datagrams+say+script)
	in, out := piped(t, cmd)
	return &talker{t: t, in: in, lines: bufio.NewScanner(out)}
}

// next has it continue, and returns what it says next.
func (a *talker) next() string {
	a.t.Helper()
	if a.begun {
		_, err := fmt.Fprintln(a.in)
		must(a.t, err)
	}
	a.begun = true
	if !a.lines.Scan() {
		a.t.Fatal("the program ended: ", a.lines.Err())
	}
	return a.lines.Text()
}

// asked is what an application sees of a UDP socket that asks for an address that is led nowhere.
func (n *node) asked(t testing.TB, m clients.Machine, mode clients.Mode, addr string, mapped bool) string {
	t.Helper()
	ap := netip.MustParseAddrPort(addr)
	host := ap.Addr().String()
	if mapped {
		host = netip.AddrFrom16(ap.Addr().As16()).String()
	}
	call := map[clients.Mode]string{clients.UDPConnected: "connected", clients.UDPUnconnected: "unconnected"}[mode]
	return special(t, m, datagrams+fmt.Sprintf("print(%s(%q, %d))", call, host, ap.Port()))
}

// wantNowhere asks that a UDP socket is led nowhere, and not refused: what it sends stays on the node, and it believes that it
// talks to what it asked for.
func (n *node) wantNowhere(t testing.TB, f bpf.Features, m clients.Machine, w toVIP) {
	t.Helper()
	got := n.asked(t, m, w.mode, w.vip, w.mapped)
	want := "sent ECONNREFUSED"
	if w.mode == clients.UDPConnected {
		peer := w.vip
		if !f.GetPeername {
			peer = bpf.Nowhere(netip.MustParseAddrPort(w.vip).Addr().Is4()).String()
		}
		want = w.seen(peer) + " ECONNREFUSED"
	}
	if got != want {
		t.Errorf("%s to %s: %s, want %s", w.name, w.vip, got, want)
	}
}

// emptied has no backend: none at all, or none here.
func emptied(svcs []nat.Service, elsewhere bool) []nat.Service {
	for i := range svcs {
		if elsewhere {
			svcs[i].Flags = map[bpf.FrontendKey]bpf.FrontendFlags{svcs[i].Frontends[0]: bpf.FrontendLocalPolicy}
			svcs[i].Local = nil
		} else {
			svcs[i].Backends, svcs[i].AllowEmpty = nil, true
		}
	}
	return svcs
}

func udpWays() (ways []toVIP) {
	for _, w := range waysToVIP() {
		if w.mode != clients.TCP {
			ways = append(ways, w)
		}
	}
	return ways
}

// at is a way to another address or port.
func (w toVIP) at(v4, v6 string) toVIP {
	if netip.MustParseAddrPort(w.vip).Addr().Is4() {
		w.vip = v4
	} else {
		w.vip = v6
	}
	return w
}

func TestUDPGoesNowhereWithoutBackends(t *testing.T) {
	n := newNode(t)
	m := n.serve(t, bpf.Balancer{UDP: true}, services(0)...)
	for _, elsewhere := range []bool{false, true} {
		n.serve(t, bpf.Balancer{UDP: true}, emptied(services(0), elsewhere)...)
		for _, w := range udpWays() {
			refused := func() (total uint64) {
				var c bpf.Counters
				for index := range uint32(8) {
					must(t, m.Map(bpf.MapCounter).Lookup(index, &c))
					total += c.Refused
				}
				return total
			}
			before := refused()
			n.wantNowhere(t, allFeatures(), n.l, w)
			if now := refused(); now == before {
				t.Errorf("%s, backends elsewhere %v: not counted", w.name, elsewhere)
			}
		}
	}
	ways := map[bpf.UDPRevNat]bool{}
	var key bpf.UDPRevNatKey
	var value bpf.UDPRevNat
	for it := m.Map(bpf.MapUDPSockRevNat).Iterate(); it.Next(&key, &value); {
		if at := netip.AddrPortFrom(key.Backend.Addr(), key.Port.Uint16()); at != bpf.Nowhere(at.Addr().Is4()) || value.Index == 0 {
			t.Errorf("an entry leads from %v to %+v", at, value)
		}
		ways[value] = true
	}
	if len(ways) != 2 {
		t.Errorf("the ways back are %v, want those of both Services", ways)
	}
}

// A socket that went nowhere reaches a backend as soon as there is one and it asks again.
func TestUDPComesFromNowhere(t *testing.T) {
	for _, w := range udpWays()[:3] {
		n := newNode(t)
		n.serve(t, bpf.Balancer{UDP: true}, emptied(services(0), false)...)
		ap := netip.MustParseAddrPort(w.seen(w.vip))
		a := n.startTalker(t, fmt.Sprintf(`
s, at = udp(%[1]q), (%[1]q, %[2]d)
s.connect(at)
s.send(b'1')
say(name(s.recv, 4096))
s.connect(at)
again = ap(s.getpeername())
s.send(b'2')
say(again, name(heard, s))
dissolve(s)
s.connect(at)
s.send(b'3')
say(ap(s.getpeername()), name(heard, s))
`, ap.Addr(), ap.Port()))
		next := func(want string) {
			t.Helper()
			if got := a.next(); got != want && allFeatures().GetPeername {
				t.Errorf("%s: %q, want %q", w.name, got, want)
			}
		}
		next("ECONNREFUSED")
		m := n.serve(t, bpf.Balancer{UDP: true}, services(0)...)
		must(t, m.Map(bpf.MapWorkload).Put(netnsCookie(t, n.l), bpf.Workload{})) // its own address is another one
		next(ap.String() + " ECONNREFUSED")                                      // its source is a loopback address, by which it would not get off the node
		next(ap.String() + " " + ap.String() + " backend-0")
	}
}

// A datagram that is led nowhere does not take the name that the socket's connect() asked for, which is led there, too.
func TestUDPNamesWhatItConnectedTo(t *testing.T) {
	lab.NeedsLinux(t, 5, 8, "asks programs for the peer's name")
	n := newNode(t)
	n.serve(t, bpf.Balancer{UDP: true}, emptied(services(0), false)...)
	for _, addr := range []string{dns4, dns6} {
		ap := netip.MustParseAddrPort(addr)
		got := special(t, n.l, datagrams+fmt.Sprintf(`
s = udp(%[1]q)
s.connect((%[1]q, %[2]d))
print(name(s.sendto, b'x', (%[1]q, %[2]d + 1)))
print(ap(s.getpeername()))
`, ap.Addr(), ap.Port()))
		if want := "ok\n" + addr; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// What is bound to a device would leave the node by that.
func TestUDPBoundToADeviceIsRefused(t *testing.T) {
	n := newNode(t)
	n.serve(t, bpf.Balancer{UDP: true}, emptied(services(0), false)...)
	pod := n.newPod(t, 1)
	want := "ECONNREFUSED"
	if !allFeatures().SetRetval {
		want = "EPERM"
	}
	for _, addr := range []string{dns4, dns6} {
		ap := netip.MustParseAddrPort(addr)
		for _, call := range []string{"connected", "unconnected"} {
			ask := func(device string) string {
				return special(t, pod, datagrams+fmt.Sprintf("print(%s(%q, %d, device=%q))", call, ap.Addr(), ap.Port(), device))
			}
			if got := ask("eth0"); got != want {
				t.Errorf("%s to %s on eth0: %s, want %s", call, addr, got, want)
			}
			if got := ask("lo"); !strings.HasSuffix(got, " ECONNREFUSED") {
				t.Errorf("%s to %s on lo: %s", call, addr, got)
			}
		}
	}
}

// The last one that was asked is the one that answers: a Service, or its backend itself.
func TestUDPNamesWhoWasAskedLast(t *testing.T) {
	n := newNode(t)
	n.serve(t, bpf.Balancer{UDP: true}, services(0)...)
	for _, w := range udpWays()[3:] {
		ap := netip.MustParseAddrPort(w.seen(w.vip))
		direct := netip.MustParseAddrPort(w.seen(netip.AddrPortFrom(backend4(0), 5353).String()))
		if netip.MustParseAddrPort(w.vip).Addr().Is6() {
			direct = netip.AddrPortFrom(backend6(0), 5353)
		}
		got := special(t, n.l, datagrams+fmt.Sprintf(`
vip, direct = (%q, %d), (%q, %d)
s = udp(vip[0])
for to in vip, direct, vip, vip, direct, direct:
    s.sendto(b'x\n', to)
    print(heard(s))
s.connect(vip)
s.send(b'x\n')
print(heard(s))
s.sendto(b'x\n', direct)
s.recv(4096)
print(ap(s.getpeername()))
s.connect(direct)
s.send(b'x\n')
print(heard(s))
print(ap(s.getpeername()))
`, ap.Addr(), ap.Port(), direct.Addr(), direct.Port()))
		v, d := ap.String()+" backend-0", direct.String()+" backend-0"
		want := []string{v, d, v, v, d, d, v, ap.String(), d, direct.String()}
		if !allFeatures().GetPeername {
			want[7] = direct.String()
		}
		if lines := strings.Split(got, "\n"); strings.Join(lines, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s: %q, want %q", w.name, lines, want)
		}
	}
}
