package nat

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

// waysToWrite are the ways to write to the kernel's maps that the running kernel has.
func waysToWrite() map[string]bpf.Features {
	ways := map[string]bpf.Features{"one by one": {}}
	if lab.KernelFeatures().Batch {
		ways["in batches"] = bpf.Features{Batch: true}
	}
	return ways
}

// runtimeIndexes are what the runtime allocates from.
var runtimeIndexes = Indexes{First: 1024, Last: 1<<32 - 1}

func tcp(s string) bpf.FrontendKey { return bpf.FrontendKeyOf(netip.MustParseAddrPort(s), bpf.TCP) }
func udp(s string) bpf.FrontendKey { return bpf.FrontendKeyOf(netip.MustParseAddrPort(s), bpf.UDP) }

func addrs(ss ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range ss {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

// kubernetes is an API service with the given backends.
func kubernetes(backends ...string) Service {
	return Service{
		Name:      "default/kubernetes:https (IPv4)",
		Frontends: []bpf.FrontendKey{tcp("10.96.0.1:443")},
		VIPs:      []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Backends:  addrs(backends...),
	}
}

func mustRead(t testing.TB, s Store) *State {
	t.Helper()
	state, err := s.Read()
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// planBlindly is planFor where nobody knows how much room there is.
func planBlindly(t testing.TB, s Store, own Indexes, services ...Service) *Plan {
	t.Helper()
	state := mustRead(t, s)
	state.Capacity = Capacity{}
	p := NewPlanner(state, own)
	for _, svc := range services {
		if err := p.Ensure(svc); err != nil {
			t.Fatal(err)
		}
	}
	return p.Plan()
}

// planFor plans services on what the store holds.
func planFor(t testing.TB, s Store, own Indexes, services ...Service) *Plan {
	t.Helper()
	p := NewPlanner(mustRead(t, s), own)
	for _, svc := range services {
		if err := p.Ensure(svc); err != nil {
			t.Fatal(err)
		}
	}
	return p.Plan()
}

// carryOut applies and commits.
func carryOut(t testing.TB, s Store, plan *Plan) {
	t.Helper()
	applied, err := Apply(s, plan)
	if err != nil {
		t.Fatal(err)
	}
	if err := applied.Commit(); err != nil {
		t.Fatal(err)
	}
}

func ensure(t testing.TB, s Store, own Indexes, services ...Service) {
	t.Helper()
	carryOut(t, s, planFor(t, s, own, services...))
}

// sorted makes two lists of backends comparable: their order has no meaning.
func sorted(in []netip.AddrPort) []netip.AddrPort {
	out := slices.Clone(in)
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

// verdict is what a connection to a frontend gets, as one comparable state.
func verdict(s *State, k bpf.FrontendKey) string {
	backends, refused := s.Resolve(k)
	switch {
	case refused:
		return "refused"
	case backends == nil:
		return "not ours"
	}
	return fmt.Sprint(sorted(backends))
}

// verdictOutside is what a connection of a client outside gets.
func verdictOutside(s *State, k bpf.FrontendKey) string {
	v := s.LookupOutside(outside, k)
	if v.Kind != Translated {
		return string(v.Kind)
	}
	return fmt.Sprint(sorted(v.Backends))
}

func wantVerdict(t testing.TB, s *State, k bpf.FrontendKey, want ...string) {
	t.Helper()
	expect := strings.Join(want, " ")
	if expect != "refused" && expect != "not ours" {
		expect = fmt.Sprint(sorted(addrs(want...)))
	}
	if got := verdict(s, k); got != expect {
		t.Errorf("%v goes to %s, want %s", k, got, expect)
	}
}

// sameTable compares all but the generation, which only ever grows.
func sameTable(a, b *State) bool {
	sameSets := maps.EqualFunc(a.Sets, b.Sets, func(x, y map[uint32]bpf.Backend) bool { return maps.Equal(x, y) })
	return sameSets && a.Services == b.Services && maps.Equal(a.Frontends, b.Frontends) && maps.Equal(a.ServiceStates, b.ServiceStates) &&
		maps.Equal(a.SourceRanges, b.SourceRanges)
}

// checkWhole says what is wrong with a table at rest: orphans, halves, frontends of nothing.
func checkWhole(t testing.TB, s *State) {
	t.Helper()
	pointed := map[uint32]bool{}
	for at, w := range s.ServiceStates {
		pointed[w.Set()] = true
		if len(s.FrontendsOf(at/2)) == 0 {
			t.Errorf("state %d (%#x) belongs to no frontend", at, uint64(w))
		}
		if len(s.Sets[w.Set()]) == 0 && w.Count() > 0 || w.Drop() && at%2 == 0 {
			t.Errorf("state %d is %#x", at, uint64(w))
		}
		for slot := range w.Count() {
			if _, ok := s.Sets[w.Set()][slot]; !ok {
				t.Errorf("state %d counts %d backends, set %d lacks slot %d", at, w.Count(), w.Set(), slot)
			}
		}
	}
	for k := range s.SourceRanges {
		if len(s.FrontendsOf(k.Index)) == 0 {
			t.Errorf("source range %v of service %d belongs to no frontend", k.Prefix(), k.Index)
		}
	}
	for id, set := range s.Sets {
		if !pointed[id] {
			t.Errorf("no state points to set %d with %d entries", id, len(set))
		}
		if uint64(id&^bpf.SetAffinity) > s.Generation {
			t.Errorf("set %d is above the generation %d", id, s.Generation)
		}
	}
}
