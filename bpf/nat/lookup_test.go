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
