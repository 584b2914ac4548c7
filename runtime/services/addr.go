package services

import (
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/bpf"
)

// parseAddr reads an address as Kubernetes does: objects that were stored
// before it became strict have leading zeros in IPv4 addresses, which count as
// decimal (k8s.io/utils/net.ParseIPSloppy), and IPv4 in IPv6 form is IPv4.
// Zones are not allowed.
func parseAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		if a, err = netip.ParseAddr(withoutZeros(s)); err != nil {
			return netip.Addr{}, false
		}
	}
	return a.Unmap(), a.Zone() == ""
}

// withoutZeros takes the leading zeros from the dotted part of an address.
func withoutZeros(s string) string {
	head, dotted := "", s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		head, dotted = s[:i+1], s[i+1:]
	}
	if len(dotted) > 64 || strings.IndexByte(dotted, '.') < 0 {
		return s
	}
	parts := strings.Split(dotted, ".")
	for i, p := range parts {
		for len(p) > 1 && p[0] == '0' {
			p = p[1:]
		}
		parts[i] = p
	}
	return head + strings.Join(parts, ".")
}

// parsePrefix reads a CIDR as Kubernetes does, blanks around it included. It is masked.
func parsePrefix(s string) (netip.Prefix, bool) {
	addr, length, ok := strings.Cut(strings.TrimSpace(s), "/")
	if !ok {
		return netip.Prefix{}, false
	}
	bits, err := strconv.ParseUint(length, 10, 8)
	if err != nil {
		return netip.Prefix{}, false
	}
	a, ok := parseAddr(addr)
	if !ok {
		return netip.Prefix{}, false
	}
	n := int(bits)
	if a.Is4() && strings.IndexByte(addr, ':') >= 0 { // ::ffff:10.0.0.0/104 is 10.0.0.0/8
		if n < 96 {
			a = netip.AddrFrom16(a.As16())
		} else {
			n -= 96
		}
	}
	p, err := a.Prefix(n)
	return p, err == nil
}

// own reports whether an address means something else in every network
// namespace, or is not a single host's at all.
func own(a netip.Addr) bool {
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a == broadcast
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func linkLocal(a netip.Addr) bool { return a.IsLinkLocalUnicast() }

// port reports the number as a port.
func port(n int32) (uint16, bool) { return uint16(n), n > 0 && n <= 65535 }

// proto reads a protocol as the API has it; empty is TCP, the API's default.
func proto(p corev1.Protocol) (bpf.Proto, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return bpf.TCP, true
	case corev1.ProtocolUDP:
		return bpf.UDP, true
	case corev1.ProtocolSCTP:
		return bpf.SCTP, true
	}
	return 0, false
}
