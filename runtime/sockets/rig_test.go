package sockets

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/runtime/netns"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

// What the node serves, over UDP and TCP.
const (
	vip4, vip6 = "10.96.0.10:53", "[fd00:96::10]:53"
	port       = 5353 // of the backends
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// node serves four Services by programs in the kernel.
type node struct {
	t    testing.TB
	l    *lab.Lab
	maps *bpf.Maps
}

func backend4(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)}), port)
}

func backend6(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", 11+i)), port)
}

// newNode starts two backends, 0 and 1.
func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{t: t, l: lab.New(t)}
	for i := range 2 {
		for _, at := range []netip.AddrPort{backend4(i), backend6(i)} {
			must(t, n.l.AddAddr(netip.PrefixFrom(at.Addr(), at.Addr().BitLen()).String()))
			u, err := standin.StartUDPEcho(n.l, name(i), at)
			must(t, err)
			t.Cleanup(u.Close)
			e, err := standin.StartTCPEcho(n.l, name(i), at)
			must(t, err)
			t.Cleanup(e.Close)
		}
	}
	n.serve(0)
	var err error
	n.maps, err = bpf.OpenMaps(bpf.PinsBelow(n.l.BPFFS), false)
	must(t, err)
	t.Cleanup(func() { n.maps.Close() })
	return n
}

func name(i int) string { return fmt.Sprint("backend-", i) }

// serve makes the Services lead to these backends alone.
func (n *node) serve(which ...int) {
	n.t.Helper()
	var svcs []nat.Service
	for _, p := range []bpf.Proto{bpf.UDP, bpf.TCP} {
		for vip, backend := range map[string]func(int) netip.AddrPort{vip4: backend4, vip6: backend6} {
			at := netip.MustParseAddrPort(vip)
			svc := nat.Service{Name: fmt.Sprint(p, vip), Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(at, p)}, VIPs: []netip.Addr{at.Addr()}, Sticky: p == bpf.UDP}
			for _, i := range which {
				svc.Backends = append(svc.Backends, backend(i))
			}
			svcs = append(svcs, svc)
		}
	}
	features := bpf.Features(lab.KernelFeatures())
	pins := bpf.PinsBelow(n.l.BPFFS)
	seeded, err := natinit.Seed(natinit.SeedConfig{Pins: pins, Sizes: bpf.Sizes{Frontends: 256, Services: 2048, Backends: 256}, Features: features, Services: svcs})
	must(n.t, err)
	defer seeded.Close()
	var st unix.Stat_t
	must(n.t, unix.Stat(n.l.Cgroup, &st))
	attached, err := attach.Attach(attach.Config{Pins: pins, Target: attach.Cgroup{Path: n.l.Cgroup, ID: st.Ino, Links: features.Link}, Programs: attach.Balancer{Balancer: bpf.Balancer{UDP: true}, Maps: seeded.Maps, Features: features}})
	must(n.t, err)
	defer attached.Close()
	must(n.t, attached.Commit())
	must(n.t, seeded.Commit())
}

func (n *node) config() Config {
	return Config{
		Reverse: n.maps.Map(bpf.MapReverse), Peer: n.maps.Map(bpf.MapPeer), Batch: lab.KernelFeatures().Batch,
		Namespaces: netns.Config{Host: n.l.Netns},
	}
}

// gone are all that a backend served, over UDP, TCP or both.
func gone(i int, protos ...bpf.Proto) (list []Backend) {
	for _, p := range protos {
		list = append(list, Backend{Proto: p, Addr: backend4(i)}, Backend{Proto: p, Addr: backend6(i)})
	}
	return list
}

func (n *node) destroy(cfg Config, gone []Backend) Result {
	n.t.Helper()
	res, err := Destroy(n.t.Context(), cfg, gone)
	must(n.t, err)
	return res
}

func (n *node) addPod(i int) clients.Machine {
	n.t.Helper()
	p, err := n.l.AddPod(fmt.Sprint("pod", i), netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", i)))
	must(n.t, err)
	return p
}
