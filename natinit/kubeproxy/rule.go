package kubeproxy

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
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
	for _, e := range attributes(expressions) {
		name, data := unix.ByteSliceToString(attribute(e.Data, unix.NFTA_EXPR_NAME)), attribute(e.Data, unix.NFTA_EXPR_DATA)
		read := func(into expr.Any) bool {
			err := expr.Unmarshal(fam.nfproto, data, into)
			r.odd = r.odd || err != nil
			return err == nil
		}
		switch name {
		case "payload":
			var p expr.Payload
			if read(&p) {
				registers[p.DestRegister] = payloadField(p, fam)
			}
		case "meta":
			var m expr.Meta
			if read(&m) {
				registers[m.Register] = fieldOther
				if m.Key == expr.MetaKeyL4PROTO {
					registers[m.Register] = fieldProto
				}
			}
		case "cmp":
			var c expr.Cmp
			if read(&c) {
				r.compare(fam, registers[c.Register], c.Op == expr.CmpOpEq, c.Data)
			}
		case "match":
			var m expr.Match
			if read(&m) {
				r.match(m.Info)
			}
		case "immediate":
			verdict := attribute(attribute(data, unix.NFTA_IMMEDIATE_DATA), unix.NFTA_DATA_VERDICT)
			r.target = unix.ByteSliceToString(attribute(verdict, unix.NFTA_VERDICT_CHAIN))
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
func payloadField(p expr.Payload, fam family) field {
	dst, proto := uint32(16), uint32(9)
	if fam == ip6 {
		dst, proto = 24, 6
	}
	switch {
	case p.Base == expr.PayloadBaseNetworkHeader && p.Offset == dst && int(p.Len) == fam.addrLen:
		return fieldAddr
	case p.Base == expr.PayloadBaseNetworkHeader && p.Offset == proto && p.Len == 1:
		return fieldProto
	case p.Base == expr.PayloadBaseTransportHeader && p.Offset == 2 && p.Len == 2:
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

// match takes a match of x_tables.
func (r *rule) match(info xt.InfoAny) {
	switch m := info.(type) {
	case *xt.Comment:
	case *xt.Tcp:
		r.matchPorts(m.SrcPorts, m.DstPorts, m.InvFlags != 0 || m.Option != 0 || m.FlagsMask != 0)
	case *xt.Udp:
		r.matchPorts(m.SrcPorts, m.DstPorts, m.InvFlags != 0)
	default:
		r.odd = true
	}
}

// matchPorts takes ranges of ports; more says that there is another condition.
func (r *rule) matchPorts(src, dst [2]uint16, more bool) {
	if more || src != [2]uint16{0, 0xffff} || dst[0] != dst[1] {
		r.odd = true
		return
	}
	r.port = dst[0]
}

// attributes are those of a netlink message; none if one is cut off.
func attributes(b []byte) []netlink.Attribute {
	attrs, _ := netlink.UnmarshalAttributes(b)
	return attrs
}

// attribute finds the first of a type; nil when it isn't there.
func attribute(b []byte, kind uint16) []byte {
	for _, a := range attributes(b) {
		if a.Type&^(netlink.Nested|netlink.NetByteOrder) == kind {
			return a.Data
		}
	}
	return nil
}
