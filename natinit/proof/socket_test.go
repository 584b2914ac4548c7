package proof

import (
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/test/lab"
)

// The proof is of one socket: what another one left in the same place of the table says nothing about it.
func TestTranslationIsOfTheSocketItself(t *testing.T) {
	l := lab.New(t)
	seeded, err := natinit.Seed(natinit.SeedConfig{Pins: bpf.PinsBelow(l.BPFFS)})
	if err != nil {
		t.Fatal(err)
	}
	defer seeded.Close()
	peers := seeded.Maps.Map(bpf.MapSockRevNat)
	const cookie = 4711
	if err := peers.Put(uint32(cookie), bpf.SockRevNat{Cookie: cookie}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		cookie uint64
		want   bool
	}{
		{"the socket itself", cookie, true},
		{"a later one that has the same place", cookie + uint64(peers.MaxEntries()), false},
		{"one that was never translated", cookie + 1, false},
		{"a socket without a cookie", 0, false},
	} {
		if _, got, err := translation(peers, tt.cookie); got != tt.want || err != nil {
			t.Errorf("%s: %v, %v, want %v", tt.name, got, err, tt.want)
		}
	}
}
