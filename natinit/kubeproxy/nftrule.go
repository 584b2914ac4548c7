package kubeproxy

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// rule is what a rule of KUBE-SERVICES matches, and where it jumps to.
type rule struct {
	addr   netip.Addr // the destination; not valid where any or a prefix matches
	proto  uint8      // 0: any
	port   uint16     // the destination's; 0: any
	target string     // the chain
	// odd says that the rule matches by more than address, protocol and port.
	odd bool
}

// exact tells whether every connection to the rule's address, protocol and
// port takes its jump.
func (r rule) exact() bool { return !r.odd && r.addr.IsValid() && r.proto != 0 && r.port != 0 }

// field is what an expression has loaded into a register.
type field int

const (
	fieldOther field = iota
	fieldAddr
	fieldProto
	fieldPort
)

// parseNftRule reads the expressions of a rule that iptables-nft wrote: pairs
// of a load and a comparison, matches of x_tables, a jump. Which of them
// stand for the port differs by its version: since 1.8.8 a load, formerly the
// match "tcp" or "udp".
func parseNftRule(expressions []byte, fam family) rule {
	var r rule
	registers := make(map[uint32]field, 1)
	for _, expression := range attributes(expressions) {
		name := text(attribute(expression, unix.NFTA_EXPR_NAME))
		data := attribute(expression, unix.NFTA_EXPR_DATA)
		switch name {
		case "payload":
			register, _ := be32(attribute(data, unix.NFTA_PAYLOAD_DREG))
			registers[register] = payloadField(data, fam)
		case "meta":
			register, _ := be32(attribute(data, unix.NFTA_META_DREG))
			registers[register] = fieldOther
			if key, _ := be32(attribute(data, unix.NFTA_META_KEY)); key == unix.NFT_META_L4PROTO {
				registers[register] = fieldProto
			}
		case "cmp":
			register, _ := be32(attribute(data, unix.NFTA_CMP_SREG))
			op, ok := be32(attribute(data, unix.NFTA_CMP_OP))
			equal := ok && op == unix.NFT_CMP_EQ
			r.compare(fam, registers[register], equal, nested(data, unix.NFTA_CMP_DATA, unix.NFTA_DATA_VALUE))
		case "match":
			r.match(text(attribute(data, unix.NFTA_MATCH_NAME)), attribute(data, unix.NFTA_MATCH_INFO))
		case "immediate":
			r.target = text(nested(data, unix.NFTA_IMMEDIATE_DATA, unix.NFTA_DATA_VERDICT, unix.NFTA_VERDICT_CHAIN))
		case "counter":
		default:
			// bitwise (a prefix), lookup, range and what else may come.
			r.odd = true
		}
	}
	return r
}

// payloadField names the part of a packet that is loaded, if it is one that a
// Service is known by.
func payloadField(data []byte, fam family) field {
	base, _ := be32(attribute(data, unix.NFTA_PAYLOAD_BASE))
	offset, _ := be32(attribute(data, unix.NFTA_PAYLOAD_OFFSET))
	size, _ := be32(attribute(data, unix.NFTA_PAYLOAD_LEN))
	dst, proto := uint32(16), uint32(9)
	if fam == ip6 {
		dst, proto = 24, 6
	}
	switch {
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && offset == dst && int(size) == fam.addrLen:
		return fieldAddr
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && offset == proto && size == 1:
		return fieldProto
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && offset == 2 && size == 2:
		return fieldPort
	}
	return fieldOther
}

// compare takes the value, in network byte order, that a field must have.
func (r *rule) compare(fam family, f field, equal bool, value []byte) {
	switch {
	case !equal:
		r.odd = true
	case f == fieldAddr && len(value) == fam.addrLen:
		r.addr, _ = netip.AddrFromSlice(value)
	case f == fieldProto && len(value) == 1:
		r.proto = value[0]
	case f == fieldPort && len(value) == 2:
		r.port = binary.BigEndian.Uint16(value)
	default:
		r.odd = true
	}
}

// match takes a match of x_tables: its name and its struct.
func (r *rule) match(name string, info []byte) {
	switch name {
	case "comment":
	case "tcp":
		r.matchPorts(info, 11)
	case "udp":
		r.matchPorts(info, 8)
	default:
		r.odd = true
	}
}

// matchPorts reads xt_tcp or xt_udp (uapi/linux/netfilter/xt_tcpudp.h): the
// ranges of the source and of the destination, in host byte order, and at
// invflags what is inverted.
func (r *rule) matchPorts(info []byte, invflags int) {
	if len(info) <= invflags || info[invflags] != 0 {
		r.odd = true
		return
	}
	port := func(i int) uint16 { return binary.NativeEndian.Uint16(info[2*i:]) }
	if port(0) != 0 || port(1) != 0xffff || port(2) != port(3) {
		r.odd = true
		return
	}
	r.port = port(2)
}
