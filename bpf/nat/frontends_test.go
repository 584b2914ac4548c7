package nat

import (
	"net/netip"
	"testing"

	"github.com/firsthop/firsthop/bpf"
)

// The address is the runtime's Service's, too: it said that other ports are refused.
func TestRemoveFrontendsKeepsMarksOfOtherWriters(t *testing.T) {
	for _, tc := range []struct {
		name string
		has  Indexes // the writer of the Service that has the mark
		want bool
	}{
		{"the runtime has a Service there", runtimeIndexes, true},
		{"only the init stage has", InitIndexes, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := NewFake(2048)
			ensure(t, f, tc.has, kubernetes("192.0.2.1:1"))
			other := Service{Name: "other", Frontends: []bpf.FrontendKey{udp("10.96.0.1:53")}, Backends: addrs("192.0.2.7:53")}
			ensure(t, f, InitIndexes, other)
			_, marked := mustRead(t, f).Frontends[bpf.VIPKeyOf(netip.MustParseAddr("10.96.0.1"))]
			if marked != tc.want {
				t.Errorf("marked: %t, want %t", marked, tc.want)
			}
		})
	}
}

func TestRemoveFrontendsRemovesMarksThatNobodyNeeds(t *testing.T) {
	f := NewFake(2048)
	svc := twoPorts(kubernetes("192.0.2.1:1"))
	svc.Frontends = append(svc.Frontends, tcp("10.96.0.9:443"))
	svc.VIPs = addrsOnly("10.96.0.1", "10.96.0.9")
	ensure(t, f, InitIndexes, svc)
	p := NewPlanner(mustRead(t, f), InitIndexes)
	p.RemoveFrontends([]bpf.FrontendKey{tcp("10.96.0.1:6443"), tcp("10.96.0.9:443")})
	applied, err := Apply(f, p.Plan())
	if err != nil {
		t.Fatal(err)
	}
	if err := applied.Commit(); err != nil {
		t.Fatal(err)
	}
	s := mustRead(t, f)
	wantVerdict(t, s, tcp("10.96.0.1:443"), "192.0.2.1:1")
	want := map[bpf.FrontendKey]bool{tcp("10.96.0.1:443"): true, bpf.VIPKeyOf(netip.MustParseAddr("10.96.0.1")): true}
	for k := range s.Frontends {
		if !want[k] {
			t.Errorf("%v is still there", k)
		}
		delete(want, k)
	}
	if len(want) > 0 {
		t.Errorf("gone are %v, too", want)
	}
}
