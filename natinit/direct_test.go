package natinit

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

// answering is the name of the server that a connection of this process leads to.
func (n *node) answering(t *testing.T, dial probe.Dial, to string) (string, error) {
	t.Helper()
	var name string
	err := n.l.Do(func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		conn, err := dial(ctx, "tcp", to)
		if err != nil {
			return err
		}
		defer conn.Close()
		if peer := conn.RemoteAddr().String(); peer != to && allFeatures().GetPeername { // else it is the backend
			t.Errorf("the peer of a connection to %s is %s", to, peer)
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			return err
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		all, err := io.ReadAll(conn)
		if err != nil {
			return err
		}
		r, err := standin.ParseReply(all)
		name = r.Server
		return err
	})
	return name, err
}

func by(b bpf.Bypass) probe.Dial { return (&net.Dialer{Control: b.Control}).DialContext }

func TestDirectGoesPastTheTable(t *testing.T) {
	n := newNode(t)
	n.cgroup = lab.MainCgroup(t)
	claim := func(addr func(int) netip.Addr) nat.Service {
		own := netip.AddrPortFrom(addr(0), 6443)
		return nat.Service{
			Name: "claim " + own.String(), Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(own, bpf.TCP)},
			Backends: []netip.AddrPort{netip.AddrPortFrom(addr(1), 6443)},
		}
	}
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, append(services(2), claim(backend4), claim(backend6)))
	t.Cleanup(func() { must(t, n.remove()) })
	direct, err := OpenDirect(n.pins)
	must(t, err)
	defer direct.Close()
	past := direct.bypass
	for _, own := range []string{netip.AddrPortFrom(backend4(0), 6443).String(), netip.AddrPortFrom(backend6(0), 6443).String()} {
		if name, err := n.answering(t, by(bpf.Bypass{}), own); err != nil || name != "backend-1" {
			t.Errorf("%s: %s (%v), want backend-1, as the table says", own, name, err)
		}
		if name, err := n.answering(t, by(past), own); err != nil || name != "backend-0" {
			t.Errorf("%s past the table: %s (%v), want backend-0", own, name, err)
		}
	}
	for _, vip := range []string{vip4, vip6} {
		if name, err := n.answering(t, by(bpf.Bypass{}), vip); err != nil || name != "backend-2" {
			t.Errorf("%s: %s (%v), want backend-2", vip, name, err)
		}
	}
	// What the programs refuse goes past them, too.
	for _, unserved := range []string{"10.96.0.1:444", "[fd00:96::1]:444", vip4} {
		if _, err := n.answering(t, by(past), unserved); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("%s past the table: %v, want no route", unserved, err)
		}
	}
}

// Where nothing is pinned nothing is translated, and there is nothing to go past.
func TestDirectWithoutATable(t *testing.T) {
	n := newNode(t)
	direct, err := OpenDirect(n.pins)
	must(t, err)
	defer direct.Close()
	past := direct.bypass
	own := netip.AddrPortFrom(backend4(0), 6443).String()
	if name, err := n.answering(t, by(past), own); err != nil || name != "backend-0" {
		t.Errorf("%s: %s (%v), want backend-0", own, name, err)
	}
}

// The next socket in the same slot is another one.
func TestDirectIsOfOneSocket(t *testing.T) {
	n := newNode(t)
	n.cgroup = lab.MainCgroup(t)
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, services(2))
	t.Cleanup(func() { must(t, n.remove()) })
	m, err := bpf.OpenMaps(n.pins, false)
	must(t, err)
	defer m.Close()
	peers := m.Map(bpf.MapSockRevNat)
	for slot := range peers.MaxEntries() { // of sockets that were here before
		must(t, peers.Put(slot, bpf.SockRevNat{Cookie: uint64(slot) | 1<<62}))
	}
	if name, err := n.answering(t, by(bpf.Bypass{}), vip4); err != nil || name != "backend-2" {
		t.Errorf("%s: %s (%v), want backend-2", vip4, name, err)
	}
}

func TestDirectDialsServicesThroughTheTable(t *testing.T) {
	n := newNode(t)
	n.cgroup = lab.MainCgroup(t)
	own := netip.AddrPortFrom(backend4(0), 6443)
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, services(2))
	t.Cleanup(func() { must(t, n.remove()) })
	m, err := bpf.OpenMaps(n.pins, false)
	must(t, err)
	defer m.Close()
	front := netip.MustParseAddrPort("10.96.0.20:443")
	kernel := nat.NewKernel(m, allFeatures())
	state, err := kernel.Read()
	must(t, err)
	p := nat.NewPlanner(state, nat.RuntimeIndexes)
	must(t, p.Ensure(nat.Service{
		Name: "claim", Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(own, bpf.TCP)}, Backends: []netip.AddrPort{netip.AddrPortFrom(backend4(1), 6443)},
	}))
	must(t, p.Ensure(nat.Service{
		Name: "cluster IP", Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(front, bpf.TCP)}, VIPs: []netip.Addr{front.Addr()},
		Backends: []netip.AddrPort{netip.AddrPortFrom(backend4(1), 6443)},
	}))
	_, err = nat.Apply(kernel, p.Plan())
	must(t, err)
	direct, err := OpenDirect(n.pins)
	must(t, err)
	defer direct.Close()
	for addr, want := range map[string]bool{vip4: true, vip6: true, front.String(): true, own.String(): false, "10.96.0.1:444": false, "192.0.2.99:1": false} {
		if got := direct.IsService(netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("%s is a Service's: %v, want %v", addr, got, want)
		}
	}
	for to, want := range map[string]string{vip4: "backend-2", front.String(): "backend-1", own.String(): "backend-0"} {
		if name, err := n.answering(t, direct.DialContext, to); err != nil || name != want {
			t.Errorf("%s leads to %s (%v), want %s", to, name, err, want)
		}
	}
}

// Programs of a former version don't know of Bypass: a claim is taken out of the table.
func TestDirectWithdrawsClaims(t *testing.T) {
	n := newNode(t)
	own, vip := netip.AddrPortFrom(backend4(0), 6443), netip.MustParseAddrPort(vip4)
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, services(2))
	m, err := bpf.OpenMaps(n.pins, false)
	must(t, err)
	defer m.Close()
	frontends := m.Map(bpf.MapFrontend)
	key := bpf.FrontendKeyOf(own, bpf.TCP)
	must(t, frontends.Put(key, bpf.Frontend{Index: nat.RuntimeIndexes.First}))
	for _, withdraw := range []bool{false, true} {
		direct, err := OpenDirect(n.pins)
		must(t, err)
		defer direct.Close()
		direct.Withdraw = withdraw
		for _, to := range []netip.AddrPort{own, vip} {
			ended, cancel := context.WithCancel(t.Context())
			cancel() // no packet leaves the lab
			if _, err := direct.DialContext(ended, "tcp", to.String()); err == nil {
				t.Error("connected")
			}
		}
		if got := direct.Claims(); len(got) != 1 || got[0] != own {
			t.Errorf("claims: %v, want %v", got, own)
		}
		var fe bpf.Frontend
		if there := frontends.Lookup(key, &fe) == nil; there == withdraw {
			t.Errorf("the claim is in the table: %v", there)
		}
		must(t, frontends.Lookup(bpf.FrontendKeyOf(vip, bpf.TCP), &fe))
	}
}
