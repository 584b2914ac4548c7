package nat

import (
	"errors"
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

// A former version leaves the marks for clients outside when the last frontend of an address goes, and changes no others.
func TestNewPlannerCollectsMarksForClientsOutside(t *testing.T) {
	f := NewFake(2048)
	svc := external(twoPorts(kubernetes("192.0.2.1:1")), 0)
	svc.Frontends = append(svc.Frontends, tcp("203.0.113.1:443"))
	svc.ExternalVIPs = addrsOnly("10.96.0.1", "203.0.113.1")
	svc.Flags[tcp("203.0.113.1:443")] = bpf.FrontendExternal
	ensure(t, f, runtimeIndexes, svc)
	must(t, f.DeleteFrontends([]bpf.FrontendKey{tcp("203.0.113.1:443")}))
	carryOut(t, f, NewPlanner(mustRead(t, f), runtimeIndexes).Plan())
	for addr, want := range map[string]bool{"10.96.0.1": true, "203.0.113.1": false} {
		if _, marked := mustRead(t, f).Frontends[bpf.ExternalVIPKeyOf(netip.MustParseAddr(addr))]; marked != want {
			t.Errorf("%s is marked: %t, want %t", addr, marked, want)
		}
	}
}

// Marks for clients outside come after what is served, go before it, and take room.
func TestExternalVIPsAreMarks(t *testing.T) {
	f := NewFake(4096)
	f.MaxFrontends = 3
	w := newWriter(t, f)
	svc := external(cluster(1, "192.0.2.1:1"), 0)
	index := w.assign(0, svc)
	plan := w.carryOut()
	if n := len(plan.Puts); n != 3 || plan.Puts[0].Key.Proto == 0 || plan.Puts[2].Frontend.Flags != bpf.FrontendVIP && plan.Puts[1].Frontend.Flags != bpf.FrontendVIP {
		t.Errorf("puts %+v, want the frontend first, and both marks", plan.Puts)
	}
	if _, err := w.p.Assign(0, cluster(2, "192.0.2.1:1")); !errors.Is(err, ErrFrontendsFull) {
		t.Errorf("a fourth frontend: %v, want ErrFrontendsFull", err)
	}
	if w.p.Missing(svc) || !w.p.UpToDate(index, svc) {
		t.Error("something is missing")
	}
	svc.ExternalVIPs = nil
	w.assign(index, svc)
	if plan := w.carryOut(); len(plan.Deletes) != 1 || plan.Deletes[0].Key != bpf.ExternalVIPKeyOf(netip.MustParseAddr("10.97.0.1")) || len(plan.Puts) > 0 {
		t.Errorf("plan %+v, want the mark gone", plan)
	}
	svc.ExternalVIPs = svc.VIPs
	if !w.p.Missing(svc) {
		t.Error("the mark is not missing")
	}
	w.assign(index, svc)
	w.carryOut()
	w.p.Remove(index)
	plan = w.carryOut()
	if n := len(plan.Deletes); n != 3 || plan.Deletes[0].Key.Proto != 0 || plan.Deletes[1].Key.Proto != 0 {
		t.Errorf("deletes %+v, want the marks first", plan.Deletes)
	}
	checkWhole(t, mustRead(t, f))
}
