package kubeproxy

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func attr(kind uint16, payload ...[]byte) []byte {
	return nl.NewRtAttr(int(kind), join(payload...)).Serialize()
}

func expression(name string, data ...[]byte) []byte {
	return attr(unix.NFTA_LIST_ELEM, attr(unix.NFTA_EXPR_NAME, []byte(name+"\x00")), attr(unix.NFTA_EXPR_DATA|unix.NLA_F_NESTED, data...))
}

// known is an expression that the library writes.
func known(e expr.Any) []byte {
	b, err := expr.Marshal(ip4.nfproto, e)
	if err != nil {
		panic(err)
	}
	return attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, b)
}

func payload(base expr.PayloadBase, offset, size uint32) []byte {
	return known(&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: size})
}

func equal(value ...byte) []byte { return known(&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}) }

func match(name string, info []byte) []byte {
	return expression("match", attr(unix.NFTA_MATCH_NAME, []byte(name+"\x00")), attr(unix.NFTA_MATCH_INFO, info))
}

func jumpTo(chain string) []byte { return known(&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}) }

// tcpMatch is struct xt_tcp for a range of destination ports.
func tcpMatch(from, to uint16, invflags byte) []byte {
	var b []byte
	for _, port := range []uint16{0, 0xffff, from, to} {
		b = binary.NativeEndian.AppendUint16(b, port)
	}
	return append(b, 0, 0, 0, invflags)
}

func join(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// What iptables 1.8.9 writes is read from the kernel in TestDetectReadsRules;
// these are the forms of other versions.
func TestParseNftRule(t *testing.T) {
	dst, proto := join(payload(1, 16, 4), equal(10, 96, 0, 1)), join(payload(1, 9, 1), equal(6))
	whole := rule{addr: netip.MustParseAddr("10.96.0.1"), proto: 6, port: 443, target: "KUBE-SVC-A"}
	with := func(change func(*rule)) rule {
		r := whole
		change(&r)
		return r
	}
	for _, test := range []struct {
		name        string
		expressions []byte
		want        rule
	}{
		{"the port as a match, as before 1.8.8",
			join(dst, proto, match("comment", make([]byte, 256)), match("tcp", tcpMatch(443, 443, 0)), expression("counter"), jumpTo("KUBE-SVC-A")), whole},
		{"the port as a load",
			join(dst, proto, payload(2, 2, 2), equal(0x01, 0xbb), jumpTo("KUBE-SVC-A")), whole},
		{"a range of ports",
			join(dst, proto, match("tcp", tcpMatch(443, 444, 0)), jumpTo("KUBE-SVC-A")),
			with(func(r *rule) { r.port, r.odd = 0, true })},
		{"any port but one",
			join(dst, proto, match("tcp", tcpMatch(443, 443, 2)), jumpTo("KUBE-SVC-A")),
			with(func(r *rule) { r.port, r.odd = 0, true })},
		{"a match that is cut off",
			join(dst, proto, match("tcp", tcpMatch(443, 443, 0)[:6]), jumpTo("KUBE-SVC-A")),
			with(func(r *rule) { r.port, r.odd = 0, true })},
		{"a prefix of addresses",
			join(payload(1, 16, 4), expression("bitwise"), equal(10, 96, 0, 0), proto, payload(2, 2, 2), equal(0x01, 0xbb), jumpTo("KUBE-SVC-A")),
			with(func(r *rule) { r.addr, r.odd = netip.MustParseAddr("10.96.0.0"), true })},
		{"a source address",
			join(payload(1, 12, 4), equal(10, 0, 0, 1), dst, proto, payload(2, 2, 2), equal(0x01, 0xbb), jumpTo("KUBE-SVC-A")),
			with(func(r *rule) { r.odd = true })},
		{"a condition that the library does not know",
			join(expression("socket"), dst, proto, payload(2, 2, 2), equal(0x01, 0xbb), jumpTo("KUBE-SVC-A")),
			with(func(r *rule) { r.odd = true })},
		{"nothing", nil, rule{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := parseNftRule(test.expressions, ip4); got != test.want {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func FuzzNftRule(f *testing.F) {
	f.Add(join(payload(1, 16, 4), equal(10, 96, 0, 1), match("tcp", tcpMatch(443, 443, 0)), jumpTo("KUBE-SVC-A")))
	f.Add(join(payload(1, 24, 16), equal(make([]byte, 16)...), jumpTo("")))
	f.Add([]byte{4, 0, 1, 0, 3, 0})
	f.Add([]byte{9, 0, 3, 4, 0, 1, 0, 3, 26}) // the last one ends without its padding
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, fam := range []family{ip4, ip6} {
			if r := parseNftRule(b, fam); r.addr.IsValid() && r.addr.BitLen() != 8*fam.addrLen {
				t.Errorf("an address of another family than %s: %+v", fam.name, r)
			}
			parseServiceKey(b, fam)
		}
	})
}
