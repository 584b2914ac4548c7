package bpf

import "net/netip"

// The types of this file are the Go twins of lib/conntrack_maps.h; layout_test.go compares both.

// Way is which way the packets of a flow go.
type Way uint8

// See enum way.
const (
	WayIn  Way = 0 // into the node: their destination is changed
	WayOut Way = 1 // out of it: their source is changed
)

func (w Way) String() string {
	if w == WayIn {
		return "in"
	}
	return "out"
}

// MarshalText makes a Way readable in JSON.
func (w Way) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// FlowKey are the packets of one flow that go one way, as they are before they are changed.
type FlowKey struct {
	Src   Address
	Dst   Address
	Sport Port
	Dport Port
	Proto Proto
	Way   Way
	Pad   uint16
}

// FlowKeyOf gives the key of packets from src to dst.
func FlowKeyOf(src, dst netip.AddrPort, p Proto, w Way) FlowKey {
	return FlowKey{Src: AddressOf(src.Addr()), Dst: AddressOf(dst.Addr()), Sport: PortOf(src.Port()), Dport: PortOf(dst.Port()), Proto: p, Way: w}
}

// Source is the address and port that the packets come with.
func (k FlowKey) Source() netip.AddrPort { return netip.AddrPortFrom(k.Src.Addr(), k.Sport.Uint16()) }

// Destination is the address and port that the packets come with.
func (k FlowKey) Destination() netip.AddrPort {
	return netip.AddrPortFrom(k.Dst.Addr(), k.Dport.Uint16())
}

// FlowFlags are enum flow_flags.
type FlowFlags uint16

// See enum flow_flags.
const (
	FlowReplied FlowFlags = 1 << iota
	FlowFin
	FlowFinOther
	FlowReset
	FlowStack
	FlowMasquerade
	FlowCut
)

// Ended reports whether both sides have ended a flow, or the backend has cut it off.
func (f FlowFlags) Ended() bool {
	return f&FlowReset != 0 || f&(FlowFin|FlowFinOther) == FlowFin|FlowFinOther
}

// Flow is what becomes of the packets of a FlowKey.
type Flow struct {
	Addr  Address
	Port  Port
	Flags FlowFlags
	Index uint32
	Seen  uint64 // ns of the monotonic clock
}

// AddrPort is what the packets get: packets in, as destination; packets out, as source.
func (f Flow) AddrPort() netip.AddrPort { return netip.AddrPortFrom(f.Addr.Addr(), f.Port.Uint16()) }

// Partner is the key of the entry for the other way: see struct flow. One that waits for a source (FlowMasquerade
// without a port) has none.
func (k FlowKey) Partner(f Flow) FlowKey {
	p := FlowKey{Proto: k.Proto}
	if k.Way == WayIn {
		p.Src, p.Sport, p.Dst, p.Dport, p.Way = f.Addr, f.Port, k.Src, k.Sport, WayOut
	} else {
		p.Src, p.Sport, p.Dst, p.Dport, p.Way = k.Dst, k.Dport, f.Addr, f.Port, WayIn
	}
	return p
}

// FragmentKey is a packet in fragments.
type FragmentKey struct {
	Src   Address
	Dst   Address
	ID    [4]byte
	Proto Proto
	Way   Way
	Pad   uint16
}

// Fragment has the ports of the first fragment.
type Fragment struct {
	Sport Port
	Dport Port
	At    uint32 // when the first one came: the monotonic clock in units of 2^30 ns
}

// MasqueradeKey is a device and a destination: a key of an LPM trie.
type MasqueradeKey struct {
	PrefixLen uint32 // of Ifindex and Dst together, so 32 more than Dst's (and 96 more for IPv4)
	Ifindex   uint32
	Dst       Address
}

// MasqueradeKeyOf gives the key of a device's destinations; those of all of its family are 0.0.0.0/0 or ::/0.
func MasqueradeKeyOf(ifindex int, p netip.Prefix) MasqueradeKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return MasqueradeKey{PrefixLen: uint32(32 + bits), Ifindex: uint32(ifindex), Dst: AddressOf(p.Masked().Addr())}
}

// PacketControl may change while programs run.
type PacketControl struct {
	FirstPort uint16 // of those for masquerade
	Ports     uint16 // how many there are
	Flags     uint32
}

// PacketCount is what became of packets: enum packet_count.
type PacketCount uint32

// See enum packet_count.
const (
	CountFlow PacketCount = iota
	CountRejected
	CountRejectLimited
	CountRejectFailed
	CountNoLocal
	CountSourceRange
	CountFragment
	CountClash
	CountNoPort
	CountNoSource
	CountRedirect
	CountMalformed
	packetCounts
)

var packetCountNames = [packetCounts]string{"flow", "rejected", "reject-limited", "reject-failed", "no-local-endpoint", "source-range",
	"fragment-without-first", "frontend-clash", "no-masquerade-port", "no-masquerade-source", "icmp-redirect", "malformed"}

func (c PacketCount) String() string {
	if c >= packetCounts {
		return "unknown"
	}
	return packetCountNames[c]
}

// MarshalText makes a PacketCount readable in JSON.
func (c PacketCount) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Dropped reports whether the packets of a count went no further.
func (c PacketCount) Dropped() bool { return c >= CountRejectLimited }

// PacketCounts are all counts.
func PacketCounts() []PacketCount {
	all := make([]PacketCount, packetCounts)
	for i := range all {
		all[i] = PacketCount(i)
	}
	return all
}

// Event is something that happened to a packet.
type Event struct {
	At   uint64 // ns of the monotonic clock
	Key  FlowKey
	To   Address // of a new flow: its backend
	Port Port
	What uint16 // PacketCount
	Pad  uint32
}

// RejectLimit is for how many answers there is room.
type RejectLimit struct {
	At     uint64
	Tokens uint64
}

// UplinkSettings are what the programs of a kind of uplinks are loaded with.
type UplinkSettings struct {
	Build     uint64
	HeaderLen uint32
	Pad       uint32
}
