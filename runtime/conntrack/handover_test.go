package conntrack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ti-mo/conntrack"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/sysctl"
	"github.com/firsthop/firsthop/test/lab"
)

// proxied is a machine whose netfilter leads a frontend to a backend, as kube-proxy does, with a map of flows.
type proxied struct {
	*lab.Lab
	t        testing.TB
	handover *Handover
	backend  net.PacketConn
}

var (
	proxiedVIP     = ap("192.0.2.10:53")
	proxiedBackend = ap("10.1.0.5:5353")
)

func newProxied(t testing.TB) *proxied {
	t.Helper()
	l := lab.New(t)
	at := sysctl.Settings{Proc: "/proc"}
	if !at.ConntrackLoaded() {
		t.Skip("needs netfilter's connection tracking: modprobe nf_conntrack")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft")
	}
	must(t, l.AddAddr("192.0.2.1/24", "10.1.0.5/32"))
	p := &proxied{Lab: l, t: t}
	p.nft(`table ip proxy {
		chain output { type nat hook output priority -100; ip daddr 192.0.2.10 udp dport 53 dnat to 10.1.0.5:5353; }
		chain track { type filter hook input priority 0; ct state new accept; }
	}`)
	var err error
	p.backend, err = l.ListenPacket("udp4", proxiedBackend.String())
	must(t, err)
	t.Cleanup(func() { p.backend.Close() })
	maps, err := bpf.EnsurePacketMaps(bpf.PinsBelow(l.BPFFS), 4096)
	must(t, err)
	t.Cleanup(func() { maps.Close() })
	log, said := lab.NewLog()
	t.Cleanup(func() {
		if said.Count("WARN") > 0 {
			t.Errorf("the log says\n%s", said)
		}
	})
	p.handover = &Handover{Log: log, Table: Table{Map: maps.Map(bpf.MapConntrack), Batch: lab.KernelFeatures().Batch}, Loaded: at.ConntrackLoaded}
	return p
}

func (p *proxied) nft(rules string) {
	p.t.Helper()
	cmd := p.Command(p.t.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("nft: %v\n%s", err, out)
	}
}

// ask sends a datagram to an address, has the backend answer, and returns the client.
func (p *proxied) ask(to netip.AddrPort) (client netip.AddrPort) {
	p.t.Helper()
	conn, err := p.DialContext(p.t.Context(), "udp4", to.String())
	must(p.t, err)
	defer conn.Close()
	must(p.t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	must(p.t, p.backend.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = conn.Write([]byte("?"))
	must(p.t, err)
	buf := make([]byte, 1)
	_, from, err := p.backend.ReadFrom(buf)
	must(p.t, err)
	_, err = p.backend.WriteTo(buf, from)
	must(p.t, err)
	_, err = conn.Read(buf)
	must(p.t, err)
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

func (p *proxied) isFrontend(at netip.AddrPort, proto bpf.Proto) bool {
	return at == proxiedVIP && proto == bpf.UDP
}

func (p *proxied) leave(want int) {
	p.t.Helper()
	must(p.t, p.Do(func() error {
		n, err := p.handover.LeaveTranslated(p.isFrontend)
		if n != want {
			p.t.Errorf("%d flows are left to the stack, want %d", n, want)
		}
		return err
	}))
}

func (p *proxied) check(want int) {
	p.t.Helper()
	must(p.t, p.Do(func() error {
		left, err := p.handover.Check()
		if left != want {
			p.t.Errorf("%d flows are still left to the stack, want %d", left, want)
		}
		return err
	}))
}

// stack are the clients of flows that are left to the stack, and their backends.
func (p *proxied) stack() map[netip.AddrPort]netip.AddrPort {
	p.t.Helper()
	got := map[netip.AddrPort]netip.AddrPort{}
	must(p.t, p.handover.Table.read(func(e Entry) bool {
		if e.Flow.Flags == bpf.FlowStack && e.isClients() && e.Key.Proto == bpf.UDP && e.Key.Destination() == proxiedVIP && Age(e.Flow, Now()) < time.Minute {
			got[e.Key.Source()] = e.Flow.AddrPort()
		}
		return true
	}))
	return got
}

func (p *proxied) netfilter(do func(*conntrack.Conn) error) {
	p.t.Helper()
	must(p.t, p.Do(func() error {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return err
		}
		defer c.Close()
		return do(c)
	}))
}

// forget makes netfilter forget a client's flow.
func (p *proxied) forget(client netip.AddrPort) {
	p.t.Helper()
	p.netfilter(func(c *conntrack.Conn) error {
		return c.Delete(conntrack.NewFlow(uint8(bpf.UDP), 0, client.Addr(), proxiedVIP.Addr(), client.Port(), proxiedVIP.Port(), 0, 0))
	})
}

// What netfilter has translated to one of our frontends is left to it; what it has not, or to another address, is not.
func TestLeaveTranslated(t *testing.T) {
	p := newProxied(t)
	a, b := p.ask(proxiedVIP), p.ask(proxiedVIP)
	p.ask(proxiedBackend)
	p.nft(`add rule ip proxy output ip daddr 192.0.2.11 udp dport 53 dnat to 10.1.0.5:5353`)
	p.ask(ap("192.0.2.11:53"))
	p.leave(2)
	want := map[netip.AddrPort]netip.AddrPort{a: proxiedBackend, b: proxiedBackend}
	if diff := cmp.Diff(want, p.stack(), cmp.Comparer(func(x, y netip.AddrPort) bool { return x == y })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	p.leave(0) // they are left already
	p.check(2)
}

// A flow that is ours stays ours: netfilter may still know what it was.
func TestLeaveTranslatedKeepsOurFlows(t *testing.T) {
	p := newProxied(t)
	client := p.ask(proxiedVIP)
	key := bpf.FlowKeyOf(client, proxiedVIP, bpf.UDP, bpf.WayIn)
	must(t, p.handover.Table.Map.Put(key, bpf.Flow{Index: 7}))
	p.leave(0)
	var f bpf.Flow
	must(t, p.handover.Table.Map.Lookup(key, &f))
	if f != (bpf.Flow{Index: 7}) {
		t.Errorf("it is %+v", f)
	}
	p.check(0)
	must(t, p.handover.Table.Map.Lookup(key, &f))
}

func TestCheckTakesBackWhatNetfilterForgot(t *testing.T) {
	p := newProxied(t)
	a, b := p.ask(proxiedVIP), p.ask(proxiedVIP)
	p.leave(2)
	p.forget(a)
	p.check(1)
	if got := p.stack(); len(got) != 1 || got[b] != proxiedBackend {
		t.Errorf("left: %v", got)
	}
	// Without the rules of the other proxy, netfilter has the client's next packets as a flow that leads nowhere.
	p.forget(b)
	p.netfilter(func(c *conntrack.Conn) error {
		return c.Create(conntrack.NewFlow(uint8(bpf.UDP), conntrack.StatusConfirmed, b.Addr(), proxiedVIP.Addr(), b.Port(), proxiedVIP.Port(), 100, 0))
	})
	p.check(0)
}

// With SCTP, whose packets need a module that is not everywhere: as netfilter lists it.
func TestTranslated(t *testing.T) {
	flow := func(p bpf.Proto, backend string) *conntrack.Flow {
		f := conntrack.NewFlow(uint8(p), 0, netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("192.0.2.10"), 40000, 53, 0, 0)
		b := ap(backend)
		f.TupleReply.IP.SourceAddress, f.TupleReply.Proto.SourcePort = b.Addr(), b.Port()
		return &f
	}
	zoned := flow(bpf.UDP, "10.1.0.5:53")
	zoned.Zone = 1
	for _, tc := range []struct {
		name string
		flow *conntrack.Flow
		ok   bool
	}{
		{"UDP", flow(bpf.UDP, "10.1.0.5:53"), true},
		{"SCTP", flow(bpf.SCTP, "10.1.0.5:53"), true},
		{"another port of the same address", flow(bpf.UDP, "192.0.2.10:5353"), true},
		{"TCP begins with SYN", flow(bpf.TCP, "10.1.0.5:53"), false},
		{"not translated", flow(bpf.UDP, "192.0.2.10:53"), false},
		{"of a zone", zoned, false},
	} {
		key, value, ok := translated(tc.flow)
		if ok != tc.ok {
			t.Errorf("%s: %v", tc.name, ok)
		}
		if ok && (key.Source() != ap("203.0.113.2:40000") || key.Destination() != ap("192.0.2.10:53") || key.Way != bpf.WayIn || value.Flags != bpf.FlowStack || value.Port.Uint16() == 0) {
			t.Errorf("%s: %+v %+v", tc.name, key, value)
		}
	}
}

// Where connection tracking is not loaded, it is not asked, and has forgotten all.
func TestHandoverWithoutConntrack(t *testing.T) {
	p := newProxied(t)
	p.ask(proxiedVIP)
	loaded := p.handover.Loaded
	p.handover.Loaded = func() bool { return false }
	p.leave(0)
	p.handover.Loaded = loaded
	p.leave(1)
	p.handover.Loaded = func() bool { return false }
	p.check(0)
	if got := p.stack(); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// Follow ends when nothing is left, or with its context.
func TestFollow(t *testing.T) {
	p := newProxied(t)
	client := p.ask(proxiedVIP)
	p.leave(1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	follow := func(ctx context.Context) {
		must(t, p.Do(func() error { p.handover.Follow(ctx); return nil }))
	}
	follow(ctx)
	p.forget(client)
	follow(t.Context())
	p.check(0)
}

// BenchmarkLeaveTranslated needs a list of 20,000 flows, of which a tenth is left to the stack.
func BenchmarkLeaveTranslated(b *testing.B) {
	const flows = 20000
	p := newProxied(b)
	p.netfilter(func(c *conntrack.Conn) error {
		for i := range flows {
			client := netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
			f := conntrack.NewFlow(uint8(bpf.UDP), conntrack.StatusConfirmed|conntrack.StatusSeenReply, client, proxiedVIP.Addr(), 40000, proxiedVIP.Port(), 600, 0)
			if err := c.Create(f); err != nil {
				return fmt.Errorf("create flow %d: %w", i, err)
			}
		}
		return nil
	})
	b.ReportAllocs()
	for b.Loop() {
		must(b, p.Do(func() error { _, err := p.handover.LeaveTranslated(p.isFrontend); return err }))
	}
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/flows, "ns/flow")
}
