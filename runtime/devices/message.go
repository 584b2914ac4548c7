package devices

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Messages of rtnetlink are a header of a fixed size and attributes (include/uapi/linux/rtnetlink.h). Numbers are in the
// host's byte order, addresses in network byte order.

// Attributes that package unix has no names for.
const (
	ifaFlags   = 8  // IFA_FLAGS
	fraTable   = 15 // FRA_TABLE
	rtaNH      = 30 // RTA_NH_ID, Linux 5.3
	nhaID      = 1  // NHA_ID
	nhaGroup   = 2  // NHA_GROUP
	nhaOIF     = 5  // NHA_OIF
	nhaGateway = 6  // NHA_GATEWAY
	vrfTable   = 1  // IFLA_VRF_TABLE
	greRemote  = 7  // IFLA_GRE_REMOTE
	greCollect = 18 // IFLA_GRE_COLLECT_METADATA
)

// attributes are the attributes of a message after its header; what is cut off ends them. Flags of the type are removed.
func attributes(message []byte, header int) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		if len(message) < header {
			return
		}
		for b := message[header:]; len(b) >= unix.SizeofRtAttr; {
			size := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if size < unix.SizeofRtAttr || size > len(b) || !yield(kind, b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// uint32Of is the number of an attribute, 0 if it has none.
func uint32Of(value []byte) uint32 {
	if len(value) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(value)
}

// textOf is the text of an attribute without the byte that ends it.
func textOf(value []byte) string { return unix.ByteSliceToString(value) }

func addrOf(value []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(value)
	return a
}

func errShort(what string, message []byte) error {
	return fmt.Errorf("read a %s: message of %d bytes is too short", what, len(message))
}

// parseLink reads RTM_NEWLINK.
func parseLink(m []byte) (Link, error) {
	if len(m) < unix.SizeofIfInfomsg {
		return Link{}, errShort("link", m)
	}
	l := Link{
		Type: binary.NativeEndian.Uint16(m[2:]), Index: int(int32(binary.NativeEndian.Uint32(m[4:]))), Flags: binary.NativeEndian.Uint32(m[8:]),
	}
	away := false
	for kind, value := range attributes(m, unix.SizeofIfInfomsg) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.Name = textOf(value)
		case unix.IFLA_MASTER:
			l.Master = int(uint32Of(value))
		case unix.IFLA_LINK:
			l.Parent = int(uint32Of(value))
		case unix.IFLA_LINK_NETNSID: // the parent, or the other end, is in another namespace
			away = true
		case unix.IFLA_LINKINFO:
			l.parseInfo(value)
		}
	}
	if away || l.Parent == l.Index {
		l.Parent = 0
	}
	return l, nil
}

func (l *Link) parseInfo(info []byte) {
	var data []byte
	for kind, value := range attributes(info, 0) {
		switch kind {
		case unix.IFLA_INFO_KIND:
			l.Kind = textOf(value)
		case unix.IFLA_INFO_DATA:
			data = value
		}
	}
	switch l.Kind {
	case "vrf":
		for kind, value := range attributes(data, 0) {
			if kind == vrfTable {
				l.Table = uint32Of(value)
			}
		}
	case "gre", "ip6gre": // ipgre_tunnel_init and ip6gre_tunnel_init set header_ops for these
		fixed := false
		for kind, value := range attributes(data, 0) {
			fixed = fixed || kind == greCollect || kind == greRemote && addrOf(value).IsValid() && !addrOf(value).IsUnspecified()
		}
		l.OuterHeader = !fixed
	}
}

// parseAddr reads RTM_NEWADDR.
func parseAddr(m []byte) (Addr, error) {
	if len(m) < unix.SizeofIfAddrmsg {
		return Addr{}, errShort("address", m)
	}
	a := Addr{Flags: uint32(m[2]), Scope: m[3], Device: int(binary.NativeEndian.Uint32(m[4:]))}
	var remote netip.Addr
	for kind, value := range attributes(m, unix.SizeofIfAddrmsg) {
		switch kind {
		case unix.IFA_LOCAL:
			a.Local = addrOf(value)
		case unix.IFA_ADDRESS: // the peer's on a point-to-point link, else the same
			remote = addrOf(value)
		case ifaFlags:
			a.Flags = uint32Of(value)
		}
	}
	if !a.Local.IsValid() {
		a.Local = remote
	}
	if !remote.IsValid() {
		remote = a.Local
	}
	a.Net = netip.PrefixFrom(remote, int(m[1]))
	return a, nil
}

// parseRuleTable reads the table of RTM_NEWRULE, 0 if the rule names none.
func parseRuleTable(m []byte) (family uint8, table uint32, err error) {
	const header, toTable = 12, 1 // struct fib_rule_hdr, FR_ACT_TO_TBL
	if len(m) < header {
		return 0, 0, errShort("rule", m)
	}
	if m[7] != toTable {
		return m[0], 0, nil
	}
	table = uint32(m[4])
	for kind, value := range attributes(m, header) {
		if kind == fraTable {
			table = uint32Of(value)
		}
	}
	return m[0], table, nil
}

// routeMessage is RTM_NEWROUTE.
type routeMessage struct {
	family, kind uint8  // AF_*, RTN_*
	cloned       bool   // an exception of the cache, no route
	nexthop      uint32 // the id of an object, 0: none
	Route               // without Hop
	hop          Hop    // of a route with one; Device is 0 where others are in paths
	paths        []byte // RTA_MULTIPATH
}

// parseRoute reads into r, so that a hundred thousand routes need no memory.
func parseRoute(m []byte, r *routeMessage) error {
	const flagCloned = 0x200 // RTM_F_CLONED
	if len(m) < unix.SizeofRtMsg {
		return errShort("route", m)
	}
	*r = routeMessage{family: m[0], kind: m[7], cloned: binary.NativeEndian.Uint32(m[8:])&flagCloned != 0}
	r.Table, r.hop.Scope = uint32(m[4]), m[6]
	r.Selective = m[3] != 0 || m[2] != 0 // TOS, length of the source's prefix
	to := netip.IPv4Unspecified()
	if r.family == unix.AF_INET6 {
		to = netip.IPv6Unspecified()
	}
	for kind, value := range attributes(m, unix.SizeofRtMsg) {
		switch kind {
		case unix.RTA_DST:
			to = addrOf(value)
		case unix.RTA_TABLE:
			r.Table = uint32Of(value)
		case unix.RTA_PRIORITY:
			r.Metric = uint32Of(value)
		case unix.RTA_PREFSRC:
			r.hop.Source = addrOf(value)
		case unix.RTA_MULTIPATH:
			r.paths = value
		case rtaNH:
			r.nexthop = uint32Of(value)
		default:
			r.hop.parse(kind, value)
		}
	}
	r.Destination = netip.PrefixFrom(to, int(m[1]))
	if !r.Destination.IsValid() {
		return fmt.Errorf("read a route: destination %v with %d bits", to, m[1])
	}
	return nil
}

// parse reads what the attributes of a route and of one of its next hops have in common.
func (h *Hop) parse(kind uint16, value []byte) {
	switch kind {
	case unix.RTA_OIF:
		h.Device = int(uint32Of(value))
	case unix.RTA_GATEWAY:
		h.Gateway = addrOf(value)
	case unix.RTA_VIA: // a gateway of the other family: two bytes say which
		if len(value) > 2 {
			h.Gateway = addrOf(value[2:])
		}
	}
}

// nextHops are the one or those of RTA_MULTIPATH; scope and source are the route's.
func (r *routeMessage) nextHops() iter.Seq[Hop] {
	return func(yield func(Hop) bool) {
		if r.paths == nil {
			if r.hop.Device != 0 {
				yield(r.hop)
			}
			return
		}
		for b := r.paths; len(b) >= unix.SizeofRtNexthop; {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofRtNexthop || size > len(b) {
				return
			}
			h := Hop{Device: int(binary.NativeEndian.Uint32(b[4:])), Source: r.hop.Source, Scope: r.hop.Scope}
			for kind, value := range attributes(b[:size], unix.SizeofRtNexthop) {
				h.parse(kind, value)
			}
			if !yield(h) {
				return
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// nexthop is RTM_NEWNEXTHOP: a next hop that routes name by its id, or a group of them.
type nexthop struct {
	id      uint32
	device  int
	gateway netip.Addr
	group   []uint32
}

func parseNexthop(m []byte) (nexthop, error) {
	const header, member = 8, 8 // struct nhmsg, struct nexthop_grp
	var n nexthop
	if len(m) < header {
		return n, errShort("next hop", m)
	}
	for kind, value := range attributes(m, header) {
		switch kind {
		case nhaID:
			n.id = uint32Of(value)
		case nhaOIF:
			n.device = int(uint32Of(value))
		case nhaGateway:
			n.gateway = addrOf(value)
		case nhaGroup:
			for ; len(value) >= member; value = value[member:] {
				n.group = append(n.group, uint32Of(value))
			}
		}
	}
	return n, nil
}
