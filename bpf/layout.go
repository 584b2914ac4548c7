package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// The types of this file are the Go twins of lib/*_maps.h: same size, same
// offsets, no implicit padding. layout_test.go compares both.

// Proto is an IP protocol number as the table has it.
type Proto uint8

// The protocols of Services. SCTP never reaches the connect-time hooks; its
// frontends are kept for the programs that see packets.
const (
	TCP  Proto = 6
	UDP  Proto = 17
	SCTP Proto = 132
)

func (p Proto) String() string {
	switch p {
	case 0:
		return "any"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("proto-%d", uint8(p))
}

// MarshalText makes a Proto readable in JSON.
func (p Proto) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// ParseProto is the inverse of String for the protocols of Services.
func ParseProto(s string) (Proto, error) {
	for _, p := range []Proto{TCP, UDP, SCTP} {
		if p.String() == s {
			return p, nil
		}
	}
	return 0, fmt.Errorf("protocol %q: want tcp, udp or sctp", s)
}

// Address is an IP address of either family in network byte order, IPv4 in
// its v4-mapped form. Socket addresses of v6 sockets that carry v4-mapped
// addresses then need no case of their own.
type Address [16]byte

// AddressOf gives the table's form of a. Zones are not carried.
func AddressOf(a netip.Addr) Address { return a.As16() }

// Addr is the inverse of AddressOf: an IPv4 address comes back as one.
func (a Address) Addr() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// Port is a port in network byte order.
type Port [2]byte

// PortOf gives the table's form of a port in host byte order.
func PortOf(p uint16) Port {
	var b Port
	binary.BigEndian.PutUint16(b[:], p)
	return b
}

// Uint16 is the inverse of PortOf.
func (p Port) Uint16() uint16 { return binary.BigEndian.Uint16(p[:]) }

// FrontendKey is what a client connects to. With Port and Proto zero it
// stands for the address as a whole, with Proto zero and Port MarkPort for what
// it is to clients outside the cluster.
type FrontendKey struct {
	Addr  Address
	Port  Port
	Proto Proto
	Nodes uint8 // 1: see NodeKeyOf and NodePortKey; 0: anything else
}

// FrontendKeyOf gives the key of an address, port and protocol.
func FrontendKeyOf(ap netip.AddrPort, p Proto) FrontendKey {
	return FrontendKey{Addr: AddressOf(ap.Addr()), Port: PortOf(ap.Port()), Proto: p}
}

// VIPKeyOf gives the key that marks an address as a VIP.
func VIPKeyOf(a netip.Addr) FrontendKey { return FrontendKey{Addr: AddressOf(a)} }

// MarkPort is the port of ExternalVIPKeyOf, the same in both byte orders.
const MarkPort = 0xffff

// ExternalVIPKeyOf gives the key that marks an address as a VIP for clients outside the cluster.
func ExternalVIPKeyOf(a netip.Addr) FrontendKey {
	return FrontendKey{Addr: AddressOf(a), Port: PortOf(MarkPort)}
}

// NodeKeyOf gives the key that marks an address as another node's: node ports of NodePortKey are served there.
func NodeKeyOf(a netip.Addr) FrontendKey { return FrontendKey{Addr: AddressOf(a), Nodes: 1} }

// NodePortKey is the frontend that a node port has at the addresses of other
// nodes, of its family: all that NodeKeyOf marks.
func NodePortKey(is4 bool, port uint16, p Proto) FrontendKey {
	addr := netip.IPv6Unspecified()
	if is4 {
		addr = netip.IPv4Unspecified()
	}
	return FrontendKey{Addr: AddressOf(addr), Port: PortOf(port), Proto: p, Nodes: 1}
}

// NodePortBlock is the bit of the map MapNodePorts that a node port of
// NodePortKey has: programs ask for it only where that is set.
func NodePortBlock(port uint16) uint64 { return 1 << (port / 1024) }

// AtNodes reports whether a key is one of NodePortKey.
func (k FrontendKey) AtNodes() bool { return k.Nodes != 0 && k.Proto != 0 }

// AddrPort is the address and port of the key.
func (k FrontendKey) AddrPort() netip.AddrPort {
	return netip.AddrPortFrom(k.Addr.Addr(), k.Port.Uint16())
}

// String is "tcp/10.96.0.1:443", "any/10.96.0.1" for an address as a whole,
// "outside/203.0.113.1" for one as clients outside the cluster see it,
// "tcp/nodes-ipv4:30080" for a node port at the addresses of other nodes, or
// "node/192.0.2.7" for the mark of such an address.
func (k FrontendKey) String() string {
	switch {
	case k.AtNodes() && k.Addr.Addr().Is4():
		return fmt.Sprintf("%s/nodes-ipv4:%d", k.Proto, k.Port.Uint16())
	case k.AtNodes():
		return fmt.Sprintf("%s/nodes-ipv6:%d", k.Proto, k.Port.Uint16())
	case k.Nodes != 0:
		return "node/" + k.Addr.Addr().String()
	case k.Proto == 0 && k.Port.Uint16() == MarkPort:
		return "outside/" + k.Addr.Addr().String()
	case k.Proto == 0:
		return "any/" + k.Addr.Addr().String()
	}
	return k.Proto.String() + "/" + k.AddrPort().String()
}

// FrontendFlags are enum frontend_flags of lib/*_maps.h.
type FrontendFlags uint32

// See enum frontend_flags of lib/*_maps.h.
const (
	FrontendVIP FrontendFlags = 1 << iota
	FrontendLocalPolicy
	FrontendSticky
	FrontendSourceRange
	FrontendNode
	FrontendExternal
	FrontendExternalLocal
	FrontendExternalRange
)

// LoopbackKey is the frontend that a node port has on the loopback addresses
// of its family: 127.0.0.0/8 (here 127.0.0.0), or ::1 (here ::127.0.0.0, which
// RFC 4291 has deprecated). It serves the host's own network namespace only.
func LoopbackKey(is4 bool, port uint16, p Proto) FrontendKey {
	addr := Address{10: 0xff, 11: 0xff, 12: 127}
	if !is4 {
		addr = Address{12: 127}
	}
	return FrontendKey{Addr: addr, Port: PortOf(port), Proto: p}
}

// Frontend says which service a frontend belongs to. One that is in the table
// changes by one 8-byte store (nat.Store.ChangeFrontends): the update of a hash
// element isn't atomic for readers.
type Frontend struct {
	Index uint32
	Flags FrontendFlags
}

// Mark reports whether the entry says something of an address, and leads to no service.
func (f Frontend) Mark() bool { return f.Flags&(FrontendVIP|FrontendNode) != 0 }

// Uses reports whether clients of the entry, inside the cluster or outside, go by
// the service's state for the Local policy, or, for false, by its other one.
func (f Frontend) Uses(localPolicy bool) bool {
	inside, outside := f.Flags&FrontendLocalPolicy != 0, f.Flags&FrontendExternalLocal != 0
	return inside == localPolicy || f.Flags&FrontendExternal != 0 && outside == localPolicy
}

// ServiceState is the present backend set of a service, as one aligned 8-byte value
// that changes by one store. The zero ServiceState has no backend.
type ServiceState uint64

// ServiceStateOf makes the state of a set id and its number of slots.
func ServiceStateOf(set, count uint32) ServiceState {
	return ServiceState(count)<<32 | ServiceState(set)
}

// Set is the id of the backend set.
func (s ServiceState) Set() uint32 { return uint32(s) }

// Count is the number of slots of the set.
func (s ServiceState) Count() uint32 { return uint32(s >> 32) }

// The high bits of a set's id say what it is like.
const (
	SetDrop     = 1 << 30 // an empty one whose connections are dropped, not refused
	SetAffinity = 1 << 31 // clients keep their backend; has member entries and one at SlotAffinity
)

// Drop reports whether there are backends, but none for this kind of traffic.
func (s ServiceState) Drop() bool { return s.Set()&SetDrop != 0 && s.Count() == 0 }

// Affinity reports whether clients keep their backend.
func (s ServiceState) Affinity() bool { return s.Set()&SetAffinity != 0 }

// SlotAffinity is the entry of a set with SetAffinity that has no address: its
// ID is for how many seconds after its last connection a client keeps its backend.
const SlotAffinity = BackendMember - 1

// ServiceStateAt is where the services array keeps a service's state, or, for frontends
// with the Local policy, its other one.
func ServiceStateAt(index uint32, localPolicy bool) uint32 {
	if localPolicy {
		return index*2 + 1
	}
	return index * 2
}

// BackendMember marks the key of a member entry: the slot is then a backend's
// id, which carries the same bit.
const BackendMember = 1 << 31

// BackendKey finds a backend by its set and slot.
type BackendKey struct {
	Set  uint32
	Slot uint32
}

// Backend is where a connection goes.
type Backend struct {
	Addr  Address
	Port  Port
	Flags BackendFlags
	ID    uint32 // BackendMember and 31 bits, unique in its set
}

// BackendFlags are enum backend_flags of lib/*_maps.h.
type BackendFlags uint16

// BackendLocal says that a backend is on this node. It is a hint: sets that init
// or a former version wrote don't have it.
const BackendLocal BackendFlags = 1 << 0

// AddrPort is the address and port of the backend.
func (b Backend) AddrPort() netip.AddrPort {
	return netip.AddrPortFrom(b.Addr.Addr(), b.Port.Uint16())
}

// Counters count what a service did. Index 0 counts refused connections to
// unserved ports of VIPs, and to addresses of the Service range that no Service has.
type Counters struct {
	Translated uint64 `json:"translated"` // connects and datagrams sent to a backend
	Refused    uint64 `json:"refused"`    // had no backend, or an unserved port or address
}

// SockRevNat is the way back of a TCP socket. Lock belongs to the kernel.
type SockRevNat struct {
	Lock         uint32
	FrontendPort Port
	BackendPort  Port
	Cookie       uint64
	Frontend     Address
	Backend      Address
}

// UDPRevNatKey is a UDP socket and a backend that it talks to.
type UDPRevNatKey struct {
	Cookie  uint64
	Backend Address
	Port    Port
	Pad0    uint16
	Pad1    uint32
}

// UDPRevNat is the frontend that a UDP socket asked for.
type UDPRevNat struct {
	Frontend Address
	Port     Port
	Writer   uint16 // low bits of Settings.Build of the program that wrote it; 0: of a former version
	Index    uint32
}

// UDPWayBack is a way back that a program has just written.
type UDPWayBack struct {
	Key   UDPRevNatKey
	Value UDPRevNat
}

// SockAffinityKey is a UDP socket and a service.
type SockAffinityKey struct {
	Cookie      uint64
	Index       uint32
	LocalPolicy uint32 // 1: chosen by the state for the Local policy
}

// SockAffinity is the backend that a UDP socket keeps for a service.
type SockAffinity struct {
	ID  uint32
	Pad uint32
}

// SockUsage counts what programs have put into one of the hashes of UDP sockets.
// Both only grow, and start at zero when the map is made.
type SockUsage struct {
	Inserted   uint64 // new entries
	Overflowed uint64 // new entries that it had no room for, and that went to the LRU hash beside it
}

// The entries of the map of SockUsage.
const (
	SockUsageRevNat   uint32 = 0 // of MapUDPSockRevNat
	SockUsageAffinity uint32 = 1 // of MapUDPSockAffinity
)

// Nowhere is the address and port that a UDP socket is led to that asks for what
// nothing serves: the discard port of a loopback address. v4 is for sockets that
// ask for an IPv4 address, v4-mapped ones included; lib/nowhere.h says why.
func Nowhere(v4 bool) netip.AddrPort {
	if v4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 9}), 9)
	}
	return netip.AddrPortFrom(netip.IPv6Loopback(), 9)
}

// SourceRangeKey is a range of the clients that a service is for, or a part of the Service range: a key of an LPM trie.
type SourceRangeKey struct {
	PrefixLen uint32 // of Index and Addr together, so 32 more than Addr's (and 96 more for IPv4)
	Index     uint32 // of the service, or IndexServiceCIDR or IndexServiceExcept
	Addr      Address
}

// The indexes of ranges that are no service's clients.
const (
	IndexServiceCIDR   uint32 = 0         // addresses of Services: who connects to one that is no frontend is refused
	IndexServiceExcept uint32 = 1<<32 - 1 // of them, those that are not ours to refuse
)

// SourceRangeKeyOf gives the key of a range, which need not be masked.
func SourceRangeKeyOf(index uint32, r netip.Prefix) SourceRangeKey {
	k := SourceRangeKey{PrefixLen: 32 + uint32(r.Bits()), Index: index, Addr: AddressOf(r.Masked().Addr())}
	if r.Addr().Is4() {
		k.PrefixLen += 96
	}
	return k
}

// Prefix is the range of a key.
func (k SourceRangeKey) Prefix() netip.Prefix {
	addr, bits := k.Addr.Addr(), int(k.PrefixLen)-32
	if addr.Is4() {
		bits -= 96
	}
	return netip.PrefixFrom(addr, bits)
}

// AffinityKey is a client and a service.
type AffinityKey struct {
	Client uint64 // cookie of the network namespace, 0 below Linux 5.7
	Index  uint32
	Pad    uint32
}

// AffinityValue is the backend that a client keeps.
type AffinityValue struct {
	ID   uint32 // Backend.ID
	Used uint32 // when it last connected, seconds of the monotonic clock
}

// Workload is what the programs know of a network namespace, found by its cookie.
type Workload struct {
	Flags WorkloadFlags
	Pad   uint32
	Addr4 Address // its address, for source ranges; zero: none is known
	Addr6 Address
}

// WorkloadFlags are enum workload_flags of lib/*_maps.h.
type WorkloadFlags uint32

// See enum workload_flags of lib/*_maps.h.
const WorkloadOptedOut WorkloadFlags = 1 << 0

// Control is the one entry of the control map: what the programs may leave undone.
type Control uint64

// See enum control_flags of lib/*_maps.h.
const ControlOptOut Control = 1 << 0

// MetaOwner in Meta says that a table is firsthop's ("fhop").
const MetaOwner = 0x66686f70

// Meta is the one entry of the meta map.
type Meta struct {
	ABI        uint32 // LayoutVersion
	Owner      uint32 // MetaOwner
	Generation uint64 // highest set id ever given out
}

// Settings are struct config of lib/config.h.
type Settings struct {
	Build        uint64
	HostNetns    uint64
	Flags        SettingsFlags
	RevNatMask   uint32
	OutgrownMask uint32 // 0: no map of sockets grows
	Pad          uint32
}

// SettingsFlags are enum config_flags of lib/config.h.
type SettingsFlags uint32

// See enum config_flags of lib/config.h.
const (
	SettingsUDP SettingsFlags = 1 << iota
	SettingsHostScope
)
