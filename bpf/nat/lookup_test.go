package nat

import (
	"net/netip"
	"testing"

	"github.com/firsthop/firsthop/bpf"
)

// The kernel takes the unspecified address of a connect() for loopback, and so do the programs.
func TestLookupTakesUnspecifiedAddressesForLoopback(t *testing.T) {
	s := NewState(16)
	for _, is4 := range []bool{true, false} {
		s.Frontends[bpf.LoopbackKey(is4, 30080, bpf.TCP)] = bpf.Frontend{Index: 3}
	}
	for addr, want := range map[string]bpf.FrontendKey{
		"127.0.0.1:30080": bpf.LoopbackKey(true, 30080, bpf.TCP), "0.0.0.0:30080": bpf.LoopbackKey(true, 30080, bpf.TCP),
		"[::1]:30080": bpf.LoopbackKey(false, 30080, bpf.TCP), "[::]:30080": bpf.LoopbackKey(false, 30080, bpf.TCP),
	} {
		if v := s.Lookup(bpf.FrontendKeyOf(netip.MustParseAddrPort(addr), bpf.TCP)); v.Frontend != want || v.Index != 3 {
			t.Errorf("%s: %+v, want the entry %v", addr, v, want)
		}
	}
}

func TestLookupOutside(t *testing.T) {
	two := func(s Service) Service { s.Backends = addrs("192.0.2.1:1", "192.0.2.2:2"); return s }
	at := tcp("10.96.0.1:443")
	for _, tc := range []struct {
		name string
		svc  Service
		key  bpf.FrontendKey
		want string
	}{
		{"a frontend for clients inside", two(kubernetes()), at, "not a frontend"},
		{"at the address of one", two(kubernetes()), tcp("10.96.0.1:80"), "not a frontend"},
		{"a frontend for clients outside", external(two(kubernetes()), 0), at, "[192.0.2.1:1 192.0.2.2:2]"},
		{"a port that is not served", external(two(kubernetes()), 0), tcp("10.96.0.1:80"), "refused"},
		{"a protocol that is not served", external(two(kubernetes()), 0), udp("10.96.0.1:443"), "refused"},
		{"a port that is not served, of a node", func() Service { s := external(two(kubernetes()), 0); s.ExternalVIPs = nil; return s }(), tcp("10.96.0.1:80"), "not a frontend"},
		{"a frontend for clients inside, where other Services serve those outside", func() Service { s := two(kubernetes()); s.ExternalVIPs = s.VIPs; return s }(), at, "refused"},
		{"another address", external(two(kubernetes()), 0), tcp("10.96.0.2:443"), "not a frontend"},
		{"internal policy Local", external(two(kubernetes()), bpf.FrontendLocalPolicy, "192.0.2.2:2"), at, "[192.0.2.1:1 192.0.2.2:2]"},
		{"external policy Local", external(two(kubernetes()), bpf.FrontendExternalLocal, "192.0.2.2:2"), at, "[192.0.2.2:2]"},
		{"external policy Local, none is local", external(two(kubernetes()), bpf.FrontendExternalLocal), at, "dropped"},
		{"external policy Local, there is none", external(empty(kubernetes()), bpf.FrontendExternalLocal), at, "refused"},
		{"no backends", external(empty(kubernetes()), 0), at, "refused"},
		{"in the source ranges", limitedOutside(external(two(kubernetes()), 0), "203.0.113.0/24"), at, "[192.0.2.1:1 192.0.2.2:2]"},
		{"in none of the source ranges", limitedOutside(external(two(kubernetes()), 0), "198.51.100.0/24"), at, "dropped"},
		{"in none of the source ranges for all clients", func() Service {
			s := external(limited(two(kubernetes()), "198.51.100.0/24"), bpf.FrontendSourceRange)
			return s
		}(), at, "dropped"},
		{"no source range at all", limitedOutside(external(two(kubernetes()), 0)), at, "dropped"},
	} {
		f := NewFake(2048)
		ensure(t, f, InitIndexes, tc.svc)
		s := mustRead(t, f)
		if got := verdictOutside(s, tc.key); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
		if v := s.LookupOutside(outside, tc.key); v.NotInRanges != (tc.want == "dropped" && v.Flags&bpf.FrontendExternalLocal == 0) {
			t.Errorf("%s: %+v", tc.name, v)
		}
	}
}
