package bpf

import (
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/firsthop/firsthop/test/lab"
)

// What tc programs return.
const (
	tcUnspec   = -1
	tcShot     = 2
	tcRedirect = 7
)

// uplinkRig are the programs of an uplink on a table of their own.
type uplinkRig struct {
	table  *Maps
	packet *PacketMaps
	uplink Uplink
	progs  map[string]*ebpf.Program
}

func newUplinkRig(t testing.TB, u Uplink) *uplinkRig {
	t.Helper()
	pins := PinsBelow(lab.New(t).BPFFS)
	r := &uplinkRig{table: mustEnsure(t, pins), uplink: u}
	var err error
	if r.packet, err = EnsurePacketMaps(pins, 4096); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.packet.Close() })
	if r.progs, err = u.Load(r.table, r.packet); err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		for _, p := range r.progs {
			p.Close()
		}
	})
	return r
}

// reset empties the maps.
func (r *uplinkRig) reset(t testing.TB) {
	t.Helper()
	hashes := []*ebpf.Map{r.table.Map(MapFrontend), r.table.Map(MapBackend), r.table.Map(MapAffinity), r.table.Map(MapSourceRange),
		r.packet.Map(MapConntrack), r.packet.Map(MapFragment), r.packet.Map(MapMasquerade)}
	for _, m := range hashes {
		for {
			key, err := m.NextKeyBytes(nil)
			if err != nil {
				t.Fatal(err)
			}
			if key == nil {
				break
			}
			if err := m.Delete(key); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range PacketCounts() {
		if err := r.packet.Map(MapPackets).Put(uint32(c), uint64(0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.packet.Map(MapPacketControl).Put(uint32(0), PacketControl{}); err != nil {
		t.Fatal(err)
	}
}

// service puts a frontend to the table, with its backends in one set for each policy.
func (r *uplinkRig) service(t testing.TB, index uint32, f FrontendKey, flags FrontendFlags, cluster, local []netip.AddrPort) {
	t.Helper()
	put := func(m MapName, k, v any) {
		t.Helper()
		if err := r.table.Map(m).Put(k, v); err != nil {
			t.Fatal(err)
		}
	}
	for i, backends := range [][]netip.AddrPort{cluster, local} {
		set := 10*index + uint32(i)
		for slot, b := range backends {
			put(MapBackend, BackendKey{set, uint32(slot)}, Backend{Addr: AddressOf(b.Addr()), Port: PortOf(b.Port()), ID: BackendMember | uint32(slot+1)})
		}
		state := uint64(len(backends))<<32 | uint64(set)
		if i == 1 && len(backends) == 0 && len(cluster) > 0 {
			state = uint64(set | 0x40000000)
		} else if len(backends) == 0 {
			state = 0
		}
		put(MapService, 2*index+uint32(i), state)
	}
	put(MapFrontend, f, Frontend{Index: index, Flags: flags})
}

// run passes a packet through a program.
func (r *uplinkRig) run(t testing.TB, hook string, in []byte) (verdict int, out []byte) {
	t.Helper()
	opts := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256), Repeat: 1}
	v, err := r.progs[hook].Run(&opts)
	if err != nil {
		t.Fatalf("%s: %v", hook, err)
	}
	return int(int32(v)), opts.DataOut
}

func (r *uplinkRig) in(t testing.TB, p []byte) (int, []byte) {
	t.Helper()
	return r.run(t, "from_uplink", p)
}

func (r *uplinkRig) out(t testing.TB, p []byte) (int, []byte) {
	t.Helper()
	return r.run(t, "to_uplink", p)
}

func (r *uplinkRig) counts(t testing.TB) map[PacketCount]uint64 {
	t.Helper()
	c, err := r.packet.Counts()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// segment is a packet to be built.
type segment struct {
	src, dst netip.AddrPort
	proto    Proto
	flags    uint8 // TCP's
	payload  []byte
	l3       bool
	chunk    uint8 // SCTP's
	options  bool  // IPv4 options, or a hop-by-hop header
	fragment part
}

// part is which fragment of a packet a segment is.
type part uint8

const (
	wholePacket part = iota
	firstFragment
	laterFragment
)

var (
	hostMAC   = net.HardwareAddr{0, 0, 0, 0, 0, 0} // what PROG_TEST_RUN's device has
	routerMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
)

const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	flagPSH
	flagACK
)

// bytes builds the packet, with right checksums.
func (s segment) bytes(t testing.TB) []byte {
	t.Helper()
	var ls []gopacket.SerializableLayer
	if !s.l3 {
		eth := &layers.Ethernet{SrcMAC: routerMAC, DstMAC: hostMAC, EthernetType: layers.EthernetTypeIPv4}
		if s.src.Addr().Is6() {
			eth.EthernetType = layers.EthernetTypeIPv6
		}
		ls = append(ls, eth)
	}
	var network gopacket.NetworkLayer
	if s.src.Addr().Is4() {
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 60, Id: 7, Protocol: layers.IPProtocol(s.proto), SrcIP: s.src.Addr().AsSlice(), DstIP: s.dst.Addr().AsSlice()}
		if s.options {
			ip.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}} // router alert
		}
		switch s.fragment {
		case firstFragment:
			ip.Flags = layers.IPv4MoreFragments
		case laterFragment:
			ip.FragOffset = 100
		}
		network = ip
		ls = append(ls, ip)
	} else {
		ip := &layers.IPv6{Version: 6, HopLimit: 60, NextHeader: layers.IPProtocol(s.proto), SrcIP: s.src.Addr().AsSlice(), DstIP: s.dst.Addr().AsSlice()}
		network = ip
		ls = append(ls, ip)
		if s.options {
			ip.NextHeader = layers.IPProtocolIPv6Destination
			d := &layers.IPv6Destination{}
			d.NextHeader = layers.IPProtocol(s.proto)
			d.Options = []*layers.IPv6DestinationOption{{OptionType: 0x1e, OptionLength: 4, OptionData: []byte{1, 2, 3, 4}}}
			ls = append(ls, d)
		}
		if s.fragment != wholePacket {
			ip.NextHeader = layers.IPProtocolIPv6Fragment
			ls = append(ls, gopacket.Payload([]byte{byte(s.proto), 0, 3 * byte(s.fragment-1), 2 - byte(s.fragment), 0, 0, 0, 7}))
		}
	}
	switch proto := s.proto; {
	case s.fragment == laterFragment: // data only
	case proto == TCP:
		tcp := &layers.TCP{SrcPort: layers.TCPPort(s.src.Port()), DstPort: layers.TCPPort(s.dst.Port()), Seq: 1000, Ack: 2000, Window: 512, DataOffset: 5,
			FIN: s.flags&flagFIN != 0, SYN: s.flags&flagSYN != 0, RST: s.flags&flagRST != 0, ACK: s.flags&flagACK != 0}
		if tcp.SYN {
			tcp.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}}
		}
		tcp.SetNetworkLayerForChecksum(network)
		ls = append(ls, tcp)
	case proto == UDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(s.src.Port()), DstPort: layers.UDPPort(s.dst.Port())}
		udp.SetNetworkLayerForChecksum(network)
		ls = append(ls, udp)
	case proto == SCTP:
		ls = append(ls, &layers.SCTP{SrcPort: layers.SCTPPort(s.src.Port()), DstPort: layers.SCTPPort(s.dst.Port()), VerificationTag: 0})
		chunk := s.chunk
		if chunk == 0 {
			chunk = 1
		}
		s.payload = append([]byte{chunk, 0, 0, byte(4 + len(s.payload))}, s.payload...)
	}
	ls = append(ls, gopacket.Payload(s.payload))
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return append([]byte(nil), buf.Bytes()...)
}

// reply is the packet the other way.
func (s segment) reply() segment {
	s.src, s.dst = s.dst, s.src
	if s.flags&flagSYN != 0 {
		s.flags |= flagACK
	}
	return s
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// wantPacket compares a packet with one that is built with right checksums, so checks those, too.
func wantPacket(t testing.TB, got []byte, want segment) {
	t.Helper()
	if w := want.bytes(t); string(got) != string(w) {
		t.Errorf("got  %x %v\nwant %x %v", got, describe(got, want.l3), w, describe(w, want.l3))
	}
}

func describe(p []byte, l3 bool) string {
	first := gopacket.Decoder(layers.LayerTypeEthernet)
	if l3 {
		first = layers.LayerTypeIPv4
		if len(p) > 0 && p[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
	}
	return gopacket.NewPacket(p, first, gopacket.Default).String()
}

func wantVerdict(t testing.TB, got, want int) {
	t.Helper()
	if got != want {
		t.Errorf("verdict %d, want %d", got, want)
	}
}
