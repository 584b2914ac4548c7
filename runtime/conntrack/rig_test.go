package conntrack

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// family are the addresses of a flow.
type family struct{ client, frontend, other, backend, node netip.AddrPort }

var families = map[string]family{
	"IPv4": {ap("203.0.113.2:40000"), ap("192.0.2.10:80"), ap("192.0.2.11:80"), ap("10.1.0.5:8080"), ap("198.51.100.1:20000")},
	"IPv6": {ap("[2001:db8:c::2]:40000"), ap("[2001:db8:5::10]:80"), ap("[2001:db8:5::11]:80"), ap("[fd00:1::5]:8080"), ap("[2001:db8:1::1]:20000")},
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// rig is the packet path without devices.
type rig struct {
	t testing.TB
	Table
	family
	proto bpf.Proto
	nat   *bpf.Maps
	maps  *bpf.PacketMaps
	progs map[string]*ebpf.Program
}

func newRig(t testing.TB, f family, p bpf.Proto) *rig {
	t.Helper()
	pins := bpf.PinsBelow(lab.New(t).BPFFS)
	r := &rig{t: t, family: f, proto: p}
	var err error
	r.nat, err = bpf.EnsureMaps(pins, bpf.Sizes{Frontends: 64, Services: 32, Backends: 64})
	must(t, err)
	t.Cleanup(func() { r.nat.Close() })
	r.maps, err = bpf.EnsurePacketMaps(pins, 4096)
	must(t, err)
	t.Cleanup(func() { r.maps.Close() })
	r.progs, err = bpf.Uplink{}.Load(r.nat, r.maps)
	must(t, err)
	t.Cleanup(func() {
		for _, p := range r.progs {
			p.Close()
		}
	})
	r.Table = Table{Map: r.maps.Map(bpf.MapConntrack), Batch: true}
	r.put(bpf.MapMasquerade, bpf.MasqueradeKeyOf(1, netip.PrefixFrom(f.node.Addr(), 0)), bpf.AddressOf(f.node.Addr())) // packets of tests come by lo
	r.put(bpf.MapPacketControl, uint32(0), bpf.PacketControl{FirstPort: f.node.Port(), Ports: 1})
	r.serve(3, f.frontend, f.backend)
	r.serve(4, f.other, f.backend)
	return r
}

func (r *rig) put(m bpf.MapName, k, v any) {
	r.t.Helper()
	to := r.maps.Map(m)
	if to == nil {
		to = r.nat.Map(m)
	}
	must(r.t, to.Put(k, v))
}

// serve leads a frontend to a backend, of which it is not known whether it is on this node.
func (r *rig) serve(index uint32, frontend, backend netip.AddrPort) {
	r.t.Helper()
	r.put(bpf.MapBackend, bpf.BackendKey{Set: 10 * index}, bpf.Backend{Addr: bpf.AddressOf(backend.Addr()), Port: bpf.PortOf(backend.Port()), ID: bpf.BackendMember | 1})
	r.put(bpf.MapService, 2*index, uint64(1)<<32|uint64(10*index))
	r.put(bpf.MapFrontend, bpf.FrontendKeyOf(frontend, r.proto), bpf.Frontend{Index: index, Flags: bpf.FrontendExternal})
}

// signal is what a packet says of its flow.
type signal uint8

const (
	begins signal = iota // TCP SYN, SCTP INIT
	data
	fin
	rst
)

// packet builds one.
func (r *rig) packet(src, dst netip.AddrPort, s signal) []byte {
	r.t.Helper()
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: make(net.HardwareAddr, 6), EthernetType: layers.EthernetTypeIPv4}
	var network gopacket.NetworkLayer
	var list []gopacket.SerializableLayer
	if src.Addr().Is4() {
		ip := &layers.IPv4{Version: 4, TTL: 60, Protocol: layers.IPProtocol(r.proto), SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
		network, list = ip, append(list, eth, ip)
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: 60, NextHeader: layers.IPProtocol(r.proto), SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
		network, list = ip, append(list, eth, ip)
	}
	payload := gopacket.Payload("x")
	switch r.proto {
	case bpf.TCP:
		tcp := &layers.TCP{SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), Window: 512,
			SYN: s == begins, ACK: s != begins || dst != r.frontend && dst != r.other && dst != r.backend, FIN: s == fin, RST: s == rst}
		must(r.t, tcp.SetNetworkLayerForChecksum(network))
		list = append(list, tcp)
	case bpf.UDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
		must(r.t, udp.SetNetworkLayerForChecksum(network))
		list = append(list, udp)
	case bpf.SCTP:
		list = append(list, &layers.SCTP{SrcPort: layers.SCTPPort(src.Port()), DstPort: layers.SCTPPort(dst.Port())})
		payload = gopacket.Payload{[]byte{begins: 1, data: 3, fin: 7, rst: 6}[s], 0, 0, 4} // INIT, SACK, SHUTDOWN, ABORT
	}
	buf := gopacket.NewSerializeBuffer()
	must(r.t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append(list, payload)...))
	return buf.Bytes()
}

func (r *rig) pass(hook string, p []byte) {
	r.t.Helper()
	opts := ebpf.RunOptions{Data: p, DataOut: make([]byte, len(p)+256), Repeat: 1}
	v, err := r.progs[hook].Run(&opts)
	must(r.t, err)
	if int32(v) != -1 {
		r.t.Fatalf("%s: verdict %d", hook, int32(v))
	}
}

// in passes a packet of the client to a frontend.
func (r *rig) in(frontend netip.AddrPort, s signal) {
	r.t.Helper()
	r.pass("from_uplink", r.packet(r.client, frontend, s))
}

// leave passes the same packet on to a backend elsewhere.
func (r *rig) leave(s signal) {
	r.t.Helper()
	r.pass("to_uplink", r.packet(r.client, r.backend, s))
}

// answer passes a packet of a backend on this node.
func (r *rig) answer(s signal) {
	r.t.Helper()
	r.pass("to_uplink", r.packet(r.backend, r.client, s))
}

// comeBack passes a packet of a backend elsewhere.
func (r *rig) comeBack(s signal) {
	r.t.Helper()
	r.pass("from_uplink", r.packet(r.backend, r.node, s))
	r.answer(s)
}

// entries are all of the map, as texts: what they are of.
func (r *rig) entries() map[string]State {
	r.t.Helper()
	got := map[string]State{}
	must(r.t, r.read(func(e Entry) bool {
		got[fmt.Sprintf("%s %s", e.Key.Way, role(r.family, e))] = StateOf(e.Flow)
		return true
	}))
	return got
}

// role says which packets an entry is for, by what they have: c client, f frontend, o another one, b backend, n this node.
func role(f family, e Entry) string {
	names := map[netip.AddrPort]string{f.client: "c", f.frontend: "f", f.other: "o", f.backend: "b", f.node: "n"}
	to := names[e.Flow.AddrPort()]
	return names[e.Key.Source()] + ">" + names[e.Key.Destination()] + " " + to
}

func (r *rig) want(what string, want map[string]State) {
	r.t.Helper()
	if diff := cmp.Diff(want, r.entries()); diff != "" {
		r.t.Errorf("%s: (-want +got)\n%s", what, diff)
	}
}

// collector makes one whose clock is ahead by what its tests ask for.
func (r *rig) collector(cfg Config) *testCollector {
	cfg.Log, _ = lab.NewLog()
	cfg.Table = r.Table
	return &testCollector{New(cfg), r}
}

type testCollector struct {
	*Collector
	rig *rig
}
