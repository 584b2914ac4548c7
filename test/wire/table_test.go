package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

// table is what the node's programs ask, written as the runtime would.
type table struct {
	pins   bpf.Pins
	maps   *bpf.Maps
	packet *bpf.PacketMaps
	next   uint32 // index of the next service
}

var smallSizes = bpf.Sizes{Frontends: 1024, Services: 256, Backends: 1024, SourceRanges: 64, UDPSockets: 64, UDPSessions: 64, TCPSockets: 64}

// protocols are those that Services have.
var protocols = []bpf.Proto{bpf.TCP, bpf.UDP, bpf.SCTP}

// newTable makes a table in which each kind of backend has a Service, at the load balancer's address and as a node port.
func newTable(t testing.TB, b *bench) *table {
	t.Helper()
	tb := &table{pins: bpf.PinsBelow(b.node.BPFFS), next: 10}
	var err error
	tb.maps, err = bpf.EnsureMaps(tb.pins, smallSizes)
	must(t, err)
	t.Cleanup(func() { tb.maps.Close() })
	tb.packet, err = bpf.EnsurePacketMaps(tb.pins, 1<<14)
	must(t, err)
	t.Cleanup(func() { tb.packet.Close() })
	for _, f := range families {
		tb.put(t, bpf.MapFrontend, bpf.ExternalVIPKeyOf(f.vip), bpf.Frontend{Flags: bpf.FrontendVIP | bpf.FrontendExternal})
		for _, k := range kinds {
			tb.serve(t, f, k)
		}
		for device, source := range map[string]netip.Addr{"eth0": f.node, "eth1": f.nodeSecond, "flannel.1": f.nodeOverlay} {
			tb.put(t, bpf.MapMasquerade, bpf.MasqueradeKeyOf(indexOf(t, b.node, device), f.any), bpf.AddressOf(source))
		}
	}
	tb.put(t, bpf.MapPacketControl, uint32(0), masqueradePorts)
	return tb
}

// serve writes the Services of a kind, one a protocol.
func (tb *table) serve(t testing.TB, f family, k kind) {
	t.Helper()
	for _, p := range protocols {
		tb.service(t, f.frontends(k), p, bpf.FrontendExternal, backend{f.backend(k), k.local()})
	}
}

// backend is one of a Service's.
type backend struct {
	at    netip.AddrPort
	local bool
}

// service writes a Service of some frontends, and gives its index. Those of its backends that are local are the set of
// the Local policy, too.
func (tb *table) service(t testing.TB, at []netip.AddrPort, p bpf.Proto, flags bpf.FrontendFlags, backends ...backend) (index uint32) {
	t.Helper()
	index = tb.next
	tb.next++
	var local []backend
	for _, b := range backends {
		if b.local {
			local = append(local, b)
		}
	}
	for i, set := range [][]backend{backends, local} {
		id := 2*index + uint32(i)
		state := bpf.ServiceStateOf(id, uint32(len(set)))
		switch {
		case len(backends) == 0:
			state = 0
		case len(set) == 0:
			state = bpf.ServiceStateOf(id|bpf.SetDrop, 0)
		}
		for slot, b := range set {
			v := bpf.Backend{Addr: bpf.AddressOf(b.at.Addr()), Port: bpf.PortOf(b.at.Port()), ID: bpf.BackendMember | uint32(slot+1)}
			if b.local {
				v.Flags = bpf.BackendLocal
			}
			tb.put(t, bpf.MapBackend, bpf.BackendKey{Set: id, Slot: uint32(slot)}, v)
		}
		tb.put(t, bpf.MapService, 2*index+uint32(i), state)
	}
	for _, a := range at {
		tb.put(t, bpf.MapFrontend, bpf.FrontendKeyOf(a, p), bpf.Frontend{Index: index, Flags: flags})
	}
	return index
}

func (tb *table) put(t testing.TB, m bpf.MapName, k, v any) {
	t.Helper()
	bm := tb.maps.Map(m)
	if bm == nil {
		bm = tb.packet.Map(m)
	}
	must(t, bm.Put(k, v))
}

// flush forgets all flows.
func (tb *table) flush(t testing.TB) {
	t.Helper()
	flows := tb.packet.Map(bpf.MapConntrack)
	var key bpf.FlowKey
	for flows.NextKey(nil, &key) == nil {
		if err := flows.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Fatal(err)
		}
	}
}

func (tb *table) count(t testing.TB, c bpf.PacketCount) uint64 {
	t.Helper()
	counts, err := tb.packet.Counts()
	must(t, err)
	return counts[c]
}

// dropped are the counts of packets that the programs dropped, but for those in but, as redirects: a node sends them
// where packets leave by the device by which they came.
func (tb *table) dropped(t testing.TB, but ...bpf.PacketCount) map[string]uint64 {
	t.Helper()
	counts, err := tb.packet.Counts()
	must(t, err)
	for _, c := range but {
		delete(counts, c)
	}
	dropped := map[string]uint64{}
	for c, n := range counts {
		if n > 0 && c.Dropped() {
			dropped[c.String()] = n
		}
	}
	return dropped
}

// awaitCount waits until at least n packets were counted.
func awaitCount(t testing.TB, tb interface {
	count(testing.TB, bpf.PacketCount) uint64
}, c bpf.PacketCount, n uint64) {
	t.Helper()
	lab.Await(t, fmt.Sprintf("%d packets count as %s", n, c), func() bool { return tb.count(t, c) >= n })
}
