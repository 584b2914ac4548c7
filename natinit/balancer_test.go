package natinit

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

// newPod gives a pod from which what nobody serves fails at once.
func (n *node) newPod(t testing.TB, i int) *lab.Pod {
	t.Helper()
	pod, err := n.l.AddPod(fmt.Sprint("pod", i), netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", i)))
	must(t, err)
	must(t, pod.Do(func() error {
		for _, cidr := range []string{"10.96.0.0/16", "fd00:96::/64"} {
			_, dst, _ := net.ParseCIDR(cidr)
			if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE}); err != nil {
				return err
			}
		}
		return nil
	}))
	return pod
}

// serve brings services of the runtime's kind up, with everything that the kernel has, and returns the table's maps.
func (n *node) serve(t testing.TB, b bpf.Balancer, svcs ...nat.Service) *bpf.Maps {
	t.Helper()
	n.up(t, allFeatures(), b, svcs)
	m, err := bpf.OpenMaps(n.pins, false)
	must(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// servers are who answered, each once, in n connections.
func servers(t testing.TB, p clients.Program, m clients.Machine, w toVIP, n int) map[string]bool {
	t.Helper()
	seen := map[string]bool{}
	for range n { // each of its own process and socket
		e := p.Run(t, m, w.mode, w.vip, "hello", w.options()...)[0]
		if e.Error != "" {
			t.Errorf("%s: %+v", w.name, e)
		}
		seen[e.Server()] = true
	}
	return seen
}

func TestAffinityKeepsTheBackend(t *testing.T) {
	lab.NeedsLinux(t, 5, 7, "network namespace cookies")
	n := newNode(t)
	p := goClient(t)
	svcs := services(0, 1, 2)
	for i := range svcs {
		svcs[i].Affinity = time.Hour
	}
	n.serve(t, bpf.Balancer{UDP: true}, svcs...)
	pods := []clients.Machine{n.l, n.newPod(t, 1), n.newPod(t, 2), n.newPod(t, 3)}
	more := []clients.Machine{n.newPod(t, 4), n.newPod(t, 5), n.newPod(t, 6), n.newPod(t, 7)}
	differ := false
	for i, w := range waysToVIP() {
		all := map[string]bool{}
		if i < 2 {
			for _, m := range more {
				all[only(servers(t, p, m, w, 1))] = true
			}
		}
		for i, m := range pods {
			seen := servers(t, p, m, w, 4)
			if len(seen) != 1 {
				t.Errorf("%s: client %d was answered by %v", w.name, i, seen)
			}
			for s := range seen {
				all[s] = true
			}
		}
		differ = differ || len(all) > 1
	}
	// Each of four Services chooses among three backends for each of four clients, two of them for four more: that all
	// come to one for each Service is a chance of one in three billion.
	if !differ {
		t.Error("all clients have the same backend: they are taken for one")
	}
	kept := servers(t, p, n.l, waysToVIP()[0], 1)
	for gone := range 3 { // one of the three rounds takes the backend away that is kept
		which := []int{(gone + 1) % 3, (gone + 2) % 3}
		left := services(which...)
		for i := range left {
			left[i].Affinity = time.Hour
		}
		n.serve(t, bpf.Balancer{UDP: true}, left...)
		now := servers(t, p, n.l, waysToVIP()[0], 4)
		if len(now) != 1 {
			t.Errorf("without backend %d: %v", gone, now)
		}
		if lost := kept[fmt.Sprintf("backend-%d", gone)]; !lost && !kept[only(now)] {
			t.Errorf("without backend %d the client moved from %v to %v", gone, kept, now)
		}
		kept = now
	}
}

func only(set map[string]bool) string {
	for s := range set {
		return s
	}
	return ""
}

// The time is the client's, not the backend's: it counts from the last connection.
func TestAffinityExpires(t *testing.T) {
	n := newNode(t)
	svc := services(0, 1, 2)[0]
	svc.Affinity = 40 * time.Second
	m := n.serve(t, bpf.Balancer{UDP: true}, svc)
	p := goClient(t)
	first := only(servers(t, p, n.l, waysToVIP()[0], 1))
	var key bpf.AffinityKey
	var value bpf.AffinityValue
	it := m.Map(bpf.MapAffinity).Iterate()
	if !it.Next(&key, &value) || key.Index != 1 {
		t.Fatalf("affinity: %+v %+v %v", key, value, it.Err())
	}
	moved := false
	for range 40 {
		value.Used -= 30 // a client may take seconds in a machine that is emulated
		must(t, m.Map(bpf.MapAffinity).Put(key, value))
		if now := only(servers(t, p, n.l, waysToVIP()[0], 1)); now != first {
			t.Fatalf("after 30 s the client moved from %s to %s", first, now)
		}
		must(t, m.Map(bpf.MapAffinity).Lookup(key, &value)) // the connection counts as use
		ahead := value
		ahead.Used += 2 // of another CPU, whose second has begun
		must(t, m.Map(bpf.MapAffinity).Put(key, ahead))
		if now := only(servers(t, p, n.l, waysToVIP()[0], 1)); now != first {
			t.Fatalf("beside a connection of a later second the client moved from %s to %s", first, now)
		}
		aged := value
		aged.Used -= 41
		must(t, m.Map(bpf.MapAffinity).Put(key, aged))
		now := only(servers(t, p, n.l, waysToVIP()[0], 1))
		must(t, m.Map(bpf.MapAffinity).Lookup(key, &value))
		if now != first {
			moved = true
			break
		}
	}
	if !moved {
		t.Error("after 41 s, a client of three backends never moved in 40 tries")
	}
}

func TestBalancerServesLocalTraffic(t *testing.T) {
	n := newNode(t)
	p := goClient(t)
	svcs := services(0, 1, 2)
	outside := netip.MustParseAddrPort("203.0.113.9:443")
	svcs[0].Frontends = append(svcs[0].Frontends, bpf.FrontendKeyOf(outside, bpf.TCP))
	vip := svcs[0].Frontends[0]
	svcs[0].Flags = map[bpf.FrontendKey]bpf.FrontendFlags{vip: bpf.FrontendLocalPolicy}
	w := waysToVIP()[0]
	external := toVIP{name: "external", mode: clients.TCP, vip: outside.String()}

	svcs[0].Local = svcs[0].Backends[1:2]
	n.serve(t, bpf.Balancer{UDP: true}, svcs...)
	if got := servers(t, p, n.l, w, 5); len(got) != 1 || !got["backend-1"] {
		t.Errorf("the Service IP led to %v, want the local backend", got)
	}
	if got := servers(t, p, n.l, external, 20); len(got) != 3 {
		t.Errorf("the external IP led to %v, want all", got)
	}

	svcs[0].Local = nil
	n.serve(t, bpf.Balancer{UDP: true}, svcs...)
	want := "connect EHOSTUNREACH"
	if !allFeatures().SetRetval {
		want = "connect EPERM"
	}
	if e := p.Run(t, n.l, w.mode, w.vip, "hello")[0]; e.Error != want {
		t.Errorf("no local backend: %+v, want %s", e, want)
	}
	servers(t, p, n.l, external, 1)

	svcs[0].Backends, svcs[0].AllowEmpty = nil, true
	n.serve(t, bpf.Balancer{UDP: true}, svcs...)
	if want = "connect ECONNREFUSED"; !allFeatures().SetRetval {
		want = "connect EPERM"
	}
	for _, addr := range []string{w.vip, external.vip} {
		if e := p.Run(t, n.l, w.mode, addr, "hello")[0]; e.Error != want {
			t.Errorf("no backend at all, %s: %+v, want %s", addr, e, want)
		}
	}
}

func TestBalancerServesNodePortsOnLoopbackToTheHost(t *testing.T) {
	n := newNode(t)
	p := goClient(t)
	svcs := services(0, 1, 2)
	for i := range svcs {
		k := svcs[i].Frontends[0]
		svcs[i].Frontends = append(svcs[i].Frontends, bpf.LoopbackKey(k.Addr.Addr().Is4(), 30080, k.Proto))
	}
	n.serve(t, bpf.Balancer{UDP: true, HostNetns: netnsCookie(t, n.l)}, svcs...)
	pod := n.newPod(t, 1)
	for _, w := range []toVIP{
		{"TCP", clients.TCP, "127.0.0.1:30080", false},
		{"TCP to another of 127.0.0.0/8", clients.TCP, "127.1.2.3:30080", false},
		{"TCP to a v4-mapped address", clients.TCP, "127.0.0.1:30080", true},
		{"TCP over IPv6", clients.TCP, "[::1]:30080", false},
		{"connected UDP", clients.UDPConnected, "127.0.0.1:30080", false},
		{"unconnected UDP", clients.UDPUnconnected, "127.0.0.1:30080", false},
		{"unconnected UDP over IPv6", clients.UDPUnconnected, "[::1]:30080", false},
	} {
		n.checkWay(t, allFeatures(), p, w)
		if e := p.Run(t, pod, w.mode, w.vip, "hello", w.options()...)[0]; e.Server() != "" {
			t.Errorf("%s: a pod's loopback address led to %s", w.name, e.Server())
		}
	}
	if e := p.Run(t, n.l, clients.TCP, "127.0.0.1:30081", "hello")[0]; e.Error != "connect ECONNREFUSED" {
		t.Errorf("a loopback port that nobody serves: %+v", e)
	}
	n.serve(t, bpf.Balancer{UDP: true}, svcs...) // which namespace is the host's isn't known
	if e := p.Run(t, n.l, clients.TCP, "127.0.0.1:30080", "hello")[0]; e.Server() != "" {
		t.Errorf("without the host's cookie: %+v", e)
	}
}

func TestBalancerAppliesSourceRanges(t *testing.T) {
	n := newNode(t)
	p := goClient(t)
	svcs := services(0, 1, 2)
	for i, r := range []string{"198.51.100.0/30", "2001:db8:1::1/128", "198.51.100.0/30", "2001:db8:1::1/128"} {
		k := svcs[i].Frontends[0]
		svcs[i].Flags = map[bpf.FrontendKey]bpf.FrontendFlags{k: bpf.FrontendSourceRange}
		svcs[i].SourceRanges = []netip.Prefix{netip.MustParsePrefix(r), netip.PrefixFrom(k.Addr.Addr(), k.Addr.Addr().BitLen())}
	}
	m := n.serve(t, bpf.Balancer{UDP: true}, svcs...)
	near, far := n.newPod(t, 1), n.newPod(t, 9)
	for i, pod := range map[int]*lab.Pod{1: near, 9: far} {
		must(t, m.Map(bpf.MapWorkload).Put(netnsCookie(t, pod), bpf.Workload{
			Addr4: bpf.AddressOf(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})),
			Addr6: bpf.AddressOf(netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", i))),
		}))
	}
	want := "EHOSTUNREACH"
	if !allFeatures().SetRetval {
		want = "EPERM"
	}
	for _, w := range waysToVIP() {
		servers(t, p, near, w, 1)
		for who, client := range map[string]clients.Machine{"a pod outside of the ranges": far, "one whose address isn't known": n.l} {
			if w.mode != clients.TCP {
				n.wantNowhere(t, allFeatures(), client, w)
				continue
			}
			if e := p.Run(t, client, w.mode, w.vip, "hello", w.options()...)[0]; e.Error != "connect "+want {
				t.Errorf("%s, %s: %+v, want %s", w.name, who, e, want)
			}
		}
	}
}

func TestBalancerRejectsPortsWithoutAService(t *testing.T) {
	n := newNode(t)
	p := goClient(t)
	m := n.serve(t, bpf.Balancer{UDP: true}, services(0, 1, 2)...)
	want := "ECONNREFUSED"
	if !allFeatures().SetRetval {
		want = "EPERM"
	}
	ways := waysToVIP()
	for i := range ways { // 10.96.0.1 becomes 10.96.0.77, a v4-mapped one too, and fd00:96::1 fd00:96::77
		addr := netip.MustParseAddrPort(ways[i].vip)
		bytes := addr.Addr().AsSlice()
		bytes[len(bytes)-1] = 0x77
		a, _ := netip.AddrFromSlice(bytes)
		ways[i].vip = netip.AddrPortFrom(a, addr.Port()).String()
	}
	refused := func(w toVIP) bool {
		if w.mode != clients.TCP {
			return strings.HasSuffix(n.asked(t, n.l, w.mode, w.vip, w.mapped), " ECONNREFUSED")
		}
		e := p.Run(t, n.l, w.mode, w.vip, "hello", w.options()...)[0]
		return strings.HasSuffix(e.Error, " "+want)
	}
	change := func(index uint32, put bool) {
		for _, w := range ways {
			a := netip.MustParseAddrPort(w.vip).Addr()
			r := netip.PrefixFrom(a, a.BitLen()-12)
			if index == bpf.IndexServiceExcept {
				r = netip.PrefixFrom(a, a.BitLen())
			}
			if put {
				must(t, m.Map(bpf.MapSourceRange).Put(bpf.SourceRangeKeyOf(index, r), uint8(0)))
			} else if err := m.Map(bpf.MapSourceRange).Delete(bpf.SourceRangeKeyOf(index, r)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				t.Fatal(err)
			}
		}
	}
	for _, step := range []struct {
		name  string
		index uint32
		put   bool
		want  bool
	}{
		{"no Service range is known", bpf.IndexServiceCIDR, false, false},
		{"the address is in the range", bpf.IndexServiceCIDR, true, true},
		{"another serves the address", bpf.IndexServiceExcept, true, false},
		{"nobody else serves it any more", bpf.IndexServiceExcept, false, true},
		{"the range went", bpf.IndexServiceCIDR, false, false},
	} {
		change(step.index, step.put)
		for _, w := range ways {
			if got := refused(w); got != step.want {
				t.Errorf("%s, %s to %s: refused %v", step.name, w.name, w.vip, got)
			}
		}
		for _, w := range waysToVIP() {
			servers(t, p, n.l, w, 1)
		}
	}
}

func TestBalancerLeavesWorkloadsThatOptOut(t *testing.T) {
	n := newNode(t)
	p := goClient(t)
	m := n.serve(t, bpf.Balancer{UDP: true}, services(0, 1, 2)...)
	in, out := n.newPod(t, 1), n.newPod(t, 2)
	must(t, m.Map(bpf.MapWorkload).Put(netnsCookie(t, out), bpf.Workload{Flags: bpf.WorkloadOptedOut}))
	for _, optOut := range []bpf.Control{0, bpf.ControlOptOut, 0} {
		must(t, m.Map(bpf.MapControl).Put(uint32(0), optOut))
		for _, w := range waysToVIP() {
			servers(t, p, in, w, 1)
			if e := p.Run(t, out, w.mode, w.vip, "hello", w.options()...)[0]; (e.Server() != "") != (optOut == 0) {
				t.Errorf("control %d, %s: %+v", optOut, w.name, e)
			}
		}
	}
}
