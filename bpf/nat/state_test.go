package nat

import (
	"cmp"
	"testing"

	"github.com/firsthop/firsthop/bpf"
)

// The order is that of netip: IPv4 before IPv6, then by value.
func TestCompareKeysOrdersByAddress(t *testing.T) {
	var keys []bpf.FrontendKey
	for _, a := range []string{"0.0.0.1:1", "10.0.0.1:80", "10.0.0.1:81", "10.0.0.2:80", "255.0.0.1:1", "[::1]:1", "[::ffff]:1", "[::1:0:0]:1", "[::a00:1]:80",
		"[64:ff9b::a00:1]:80", "[fd00::1]:1", "[fd00::2]:1", "[fd00::1:0:0:1]:1"} {
		keys = append(keys, tcp(a), udp(a))
	}
	for _, a := range keys {
		for _, b := range keys {
			want := cmp.Or(a.AddrPort().Addr().Compare(b.AddrPort().Addr()), cmp.Compare(a.Port.Uint16(), b.Port.Uint16()), cmp.Compare(a.Proto, b.Proto))
			if got := CompareKeys(a, b); got != want {
				t.Errorf("%v and %v: %d, want %d", a, b, got, want)
			}
		}
	}
}
