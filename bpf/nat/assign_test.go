package nat

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

// writer is one that lives on, as the runtime's does.
type writer struct {
	t testing.TB
	f *Fake
	p *Planner
}

func newWriter(t testing.TB, f *Fake) *writer {
	return &writer{t: t, f: f, p: NewPlanner(mustRead(t, f), RuntimeIndexes)}
}

func (w *writer) assign(index uint32, svc Service) uint32 {
	w.t.Helper()
	index, err := w.p.Assign(index, svc)
	if err != nil {
		w.t.Fatal(err)
	}
	return index
}

// carryOut hands the plan out, applies it, and asks whether the planner knows what the table now holds.
func (w *writer) carryOut() *Plan {
	w.t.Helper()
	plan := w.p.Take()
	carryOut(w.t, w.f, plan)
	w.p.Released(plan)
	if now := mustRead(w.t, w.f); !sameTable(w.p.State(), now) {
		w.t.Errorf("the planner has %+v, the table %+v", w.p.State(), now)
	}
	return plan
}

func cluster(n int, backends ...string) Service {
	ip := netip.AddrFrom4([4]byte{10, 97, byte(n >> 8), byte(n)})
	return Service{
		Name: fmt.Sprint("default/s", n), Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(netip.AddrPortFrom(ip, 80), bpf.TCP)},
		VIPs: []netip.Addr{ip}, Backends: addrs(backends...), AllowEmpty: true,
	}
}

func TestAssignTakesTheSeedOver(t *testing.T) {
	f := NewFake(4096)
	ensure(t, f, InitIndexes, kubernetes("192.0.2.1:1", "192.0.2.2:2"), cluster(9, "192.0.2.9:9"))
	w := newWriter(t, f)
	watch(t, f, mustRead(t, f), mustRead(t, f)) // whatever is written, nobody sees a difference
	index := w.assign(0, kubernetes("192.0.2.2:2", "192.0.2.1:1"))
	w.carryOut()
	f.Observe = nil
	if index != 1024 {
		t.Errorf("index %d, want the first of the runtime's", index)
	}
	s := mustRead(t, f)
	if got := s.Indexes(); !slices.Equal(got, []uint32{2, 1024}) {
		t.Errorf("indexes %v: want the seed gone, and the init stage's other service as it was", got)
	}
	checkWhole(t, s)
	// An init stage that comes back merges, and takes nothing back.
	if err := NewPlanner(s, InitIndexes).Ensure(kubernetes("192.0.2.1:1")); !errors.Is(err, ErrOwned) {
		t.Errorf("the init stage: %v, want ErrOwned", err)
	}
}

func TestAssignIsExact(t *testing.T) {
	w := newWriter(t, NewFake(4096))
	two := cluster(1, "192.0.2.1:1")
	outside := tcp("203.0.113.1:80")
	two.Frontends = append(two.Frontends, outside)
	index := w.assign(0, two)
	other := w.assign(0, cluster(2, "192.0.2.2:2"))
	w.carryOut()
	if again := w.assign(index, two); again != index || !w.p.Plan().Empty() {
		t.Errorf("the same again: index %d, %+v", again, w.p.Plan())
	}

	w.assign(index, cluster(1, "192.0.2.1:1"))
	moved := cluster(2, "192.0.2.2:2")
	moved.Frontends = append(moved.Frontends, outside)
	w.assign(other, moved)
	w.carryOut()
	s := mustRead(t, w.f)
	wantVerdict(t, s, outside, "192.0.2.2:2")
	wantVerdict(t, s, tcp("10.97.0.1:80"), "192.0.2.1:1")
	checkWhole(t, s)

	w.p.Remove(index)
	w.p.Remove(other)
	w.carryOut()
	if s := mustRead(t, w.f); len(s.Frontends)+len(s.ServiceStates)+len(s.Sets) != 0 {
		t.Errorf("left over: %+v", s)
	}
}

// A program that still has the frontend of a service which goes would find the backends of the one that gets its index.
func TestAssignUsesNoIndexTwiceInOnePlan(t *testing.T) {
	w := newWriter(t, NewFake(4096))
	index := w.assign(0, cluster(1, "192.0.2.1:1"))
	w.carryOut()
	w.p.Remove(index)
	if next := w.assign(0, cluster(2, "192.0.2.2:2")); next == index {
		t.Errorf("index %d is used again", next)
	}
	w.carryOut()
	if next := w.assign(0, cluster(3, "192.0.2.3:3")); next != index {
		t.Errorf("index %d, want the free %d", next, index)
	}
	w.carryOut()
}

// A program that read the frontend before it was taken over would find the backends of the next service in its index.
func TestReleasedIndexWaitsForAGracePeriod(t *testing.T) {
	w := newWriter(t, NewFake(4096))
	taker := cluster(9, "192.0.2.2:2")
	left := []uint32{w.assign(0, cluster(0)), w.assign(0, cluster(1)), w.assign(0, taker)}[:2]
	w.carryOut()
	var taken []*Applied
	for n := range left { // one after the other, into another service
		taker.Frontends, taker.VIPs = append(taker.Frontends, cluster(n).Frontends...), append(taker.VIPs, cluster(n).VIPs...)
		w.assign(left[1]+1, taker)
		plan := w.p.Take()
		if len(plan.Deletes)+len(plan.DeferredStates)+len(plan.OldSets) > 0 || !plan.HasDeferred() {
			t.Errorf("plan %+v: want nothing to be removed, and a grace period", plan)
		}
		applied, err := Apply(w.f, plan)
		must(t, err)
		taken = append(taken, applied)
	}
	if next := w.assign(0, cluster(3, "192.0.2.3:3")); slices.Contains(left, next) {
		t.Errorf("index %d is used again at once", next)
	}
	must(t, taken[0].Commit())
	w.p.Released(taken[0].plan)
	if w.f.Graces == 0 {
		t.Error("nothing was waited for")
	}
	if next := w.assign(0, cluster(4, "192.0.2.4:4")); next != left[0] {
		t.Errorf("index %d, want the free %d", next, left[0])
	}
	if next := w.assign(0, cluster(5, "192.0.2.5:5")); slices.Contains(left, next) {
		t.Errorf("index %d is used again before a grace period", next)
	}
}

// However many Services change.
func TestAssignNeverWaitsForFrontends(t *testing.T) {
	w := newWriter(t, NewFake(4096))
	var indexes []uint32
	for n := range 1000 {
		indexes = append(indexes, w.assign(0, cluster(n, "192.0.2.1:1", "192.0.2.2:2")))
	}
	w.carryOut()
	w.f.Graces = 0
	for n, index := range indexes {
		w.assign(index, localOnly(cluster(n, "192.0.2.1:1", "192.0.2.2:2"), "192.0.2.2:2"))
	}
	plan := w.p.Take()
	applied, err := Apply(w.f, plan)
	must(t, err)
	if len(plan.Puts) != 1000 || w.f.Graces > 0 {
		t.Errorf("%d frontends changed, %d grace periods, want 1000 and none", len(plan.Puts), w.f.Graces)
	}
	must(t, applied.Commit())
	if w.f.Graces > 1 {
		t.Errorf("%d grace periods, want one for all", w.f.Graces)
	}
}

func TestAssignWithALocalPolicy(t *testing.T) {
	a, b := "192.0.2.1:1", "192.0.2.2:2"
	local := func(all, here []string) Service {
		s := cluster(1, all...)
		s.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{s.Frontends[0]: bpf.FrontendLocalPolicy}
		s.Local = addrs(here...)
		s.Frontends = append(s.Frontends, tcp("203.0.113.1:80"))
		return s
	}
	plain := func(all ...string) Service {
		s := cluster(1, all...)
		s.Frontends = append(s.Frontends, tcp("203.0.113.1:80"))
		return s
	}
	for _, tc := range []struct {
		name    string
		svc     Service
		vip     Kind
		to      []string
		outside Kind
	}{
		{"one of two is here", local([]string{a, b}, []string{b}), Translated, []string{b}, Translated},
		{"all are here", local([]string{a, b}, []string{b, a}), Translated, []string{a, b}, Translated},
		{"none is here", local([]string{a, b}, nil), Dropped, nil, Translated},
		{"there are none", local(nil, nil), Refused, nil, Refused},
		{"here are some that cluster traffic doesn't use", local([]string{a}, []string{a, b}), Translated, []string{a, b}, Translated},
		{"no policy", plain(a), Translated, []string{a}, Translated},
		{"a policy, with affinity", func() Service { s := local([]string{a, b}, []string{a}); s.Affinity = time.Hour; return s }(), Translated, []string{a}, Translated},
		{"no policy and no backends", plain(), Refused, nil, Refused},
	} {
		// From each of the others, in one history.
		t.Run(tc.name, func(t *testing.T) {
			w := newWriter(t, NewFake(4096))
			index := w.assign(0, plain(b))
			w.carryOut()
			for _, former := range []Service{plain(), local([]string{a, b}, []string{b}), local([]string{a, b}, []string{a, b}), local([]string{b}, nil)} {
				w.assign(index, former)
				w.carryOut()
				w.assign(index, tc.svc)
				w.carryOut()
				s := mustRead(t, w.f)
				v := s.Lookup(tc.svc.Frontends[0])
				if v.Kind != tc.vip || !slices.Equal(sorted(v.Backends), sorted(addrs(tc.to...))) || v.Affinity != 0 && v.Affinity != tc.svc.Affinity {
					t.Errorf("the Service IP: %+v", v)
				}
				if v := s.Lookup(tc.svc.Frontends[1]); v.Kind != tc.outside {
					t.Errorf("the external IP: %+v", v)
				}
				checkWhole(t, s)
			}
		})
	}
}

// A policy that comes and goes takes one store of a state, and no change of frontends.
func TestAssignKeepsFrontendsOfAPolicyThatEnds(t *testing.T) {
	w := newWriter(t, NewFake(4096))
	plain := cluster(1, "192.0.2.1:1", "192.0.2.2:2")
	limited := cluster(1, "192.0.2.1:1", "192.0.2.2:2")
	limited.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{limited.Frontends[0]: bpf.FrontendLocalPolicy}
	limited.Local = addrs("192.0.2.2:2")
	index := w.assign(0, limited)
	w.carryOut()
	for range 2 {
		for _, svc := range []Service{plain, limited} {
			w.assign(index, svc)
			if plan := w.carryOut(); len(plan.Puts)+len(plan.Deletes) > 0 || len(plan.ServiceStates) == 0 {
				t.Errorf("plan %+v, want states and no frontends", plan)
			}
			want := svc.Backends
			if svc.Local != nil {
				want = svc.Local
			}
			if v := mustRead(t, w.f).Lookup(svc.Frontends[0]); !slices.Equal(sorted(v.Backends), sorted(want)) {
				t.Errorf("leads to %v, want %v", v.Backends, want)
			}
		}
	}
}

// So does one for clients outside.
func TestAssignKeepsFrontendsOfAnExternalPolicyThatEnds(t *testing.T) {
	w := newWriter(t, NewFake(4096))
	both := cluster(1, "192.0.2.1:1", "192.0.2.2:2")
	plain, local := external(both, 0), external(both, bpf.FrontendExternalLocal, "192.0.2.2:2")
	index := w.assign(0, local)
	w.carryOut()
	for range 2 {
		for svc, want := range map[*Service]string{&plain: "[192.0.2.1:1 192.0.2.2:2]", &local: "[192.0.2.2:2]"} {
			w.assign(index, *svc)
			if plan := w.carryOut(); len(plan.Puts)+len(plan.Deletes)+len(plan.DeferredStates) > 0 {
				t.Errorf("plan %+v, want states and no frontends", plan)
			}
			if got := verdictOutside(mustRead(t, w.f), both.Frontends[0]); got != want {
				t.Errorf("leads to %s, want %s", got, want)
			}
		}
	}
}

// A state that clients outside alone go by is cleared before its set is removed, and not with it.
func TestPlanClearsStatesOfClientsOutsideAtOnce(t *testing.T) {
	w := newWriter(t, NewFake(4096))
	svc := external(cluster(1, "192.0.2.1:1", "192.0.2.2:2"), bpf.FrontendLocalPolicy, "192.0.2.2:2")
	index := w.assign(0, svc)
	w.carryOut()
	svc.Backends, svc.Local = nil, nil
	w.assign(index, svc)
	if plan := w.carryOut(); len(plan.ServiceStates) != 2 || len(plan.DeferredStates) > 0 {
		t.Errorf("plan %+v, want both states cleared at once", plan)
	}
}

func TestAssignWithAffinity(t *testing.T) {
	w := newWriter(t, NewFake(4096))
	svc := cluster(1, "192.0.2.1:1", "192.0.2.2:2")
	index := w.assign(0, svc)
	w.carryOut()
	ids := map[netip.AddrPort]uint32{}
	for _, d := range []time.Duration{3 * time.Hour, 3 * time.Hour, time.Second, MaxAffinity, 0} {
		svc.Affinity = d
		w.assign(index, svc)
		w.carryOut()
		v := mustRead(t, w.f).Lookup(svc.Frontends[0])
		if v.Affinity != d {
			t.Errorf("affinity %v, want %v", v.Affinity, d)
		}
		for slot := range uint32(2) {
			be := mustRead(t, w.f).Sets[v.Set][slot]
			if id, known := ids[be.AddrPort()]; known && id != be.ID {
				t.Errorf("%v lost its id %#x, has %#x: clients would lose it", be.AddrPort(), id, be.ID)
			}
			ids[be.AddrPort()] = be.ID
		}
	}
	for _, d := range []time.Duration{-1, time.Millisecond, MaxAffinity + time.Second} {
		svc.Affinity = d
		if _, err := w.p.Assign(index, svc); err == nil {
			t.Errorf("affinity of %v was taken", d)
		}
	}
}

func TestSourceRangesComeBeforeOthersGo(t *testing.T) {
	f := NewFake(4096)
	w := newWriter(t, f)
	limited := func(ranges ...string) Service {
		s := cluster(1, "192.0.2.1:1")
		s.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{s.Frontends[0]: bpf.FrontendSourceRange}
		for _, r := range ranges {
			s.SourceRanges = append(s.SourceRanges, netip.MustParsePrefix(r))
		}
		return s
	}
	index := w.assign(0, limited("10.0.0.0/8", "192.0.2.7/24"))
	w.carryOut()
	keep := bpf.SourceRangeKeyOf(index, netip.MustParsePrefix("10.0.0.0/8"))
	f.Observe = func(s *State) {
		if !s.SourceRanges[keep] {
			t.Error("a range that stays was gone")
		}
	}
	w.assign(index, limited("10.1.2.3/8", "198.51.100.0/24"))
	w.carryOut()
	f.Observe = nil
	var got []string
	for k := range mustRead(t, f).SourceRanges {
		got = append(got, k.Prefix().String())
	}
	slices.Sort(got)
	if want := []string{"10.0.0.0/8", "198.51.100.0/24"}; !slices.Equal(got, want) {
		t.Errorf("ranges %v, want %v", got, want)
	}
	// Twice in one plan.
	w.assign(index, limited())
	w.assign(index, limited("198.51.100.0/24"))
	w.carryOut()
	w.assign(index, cluster(1, "192.0.2.1:1"))
	w.carryOut()
	if s := mustRead(t, f); len(s.SourceRanges) != 0 {
		t.Errorf("ranges %v are left", s.SourceRanges)
	}
}

func TestAssignLeavesOutWhatDoesNotFit(t *testing.T) {
	f := NewFake(4096)
	f.MaxFrontends, f.MaxBackends = 6, 10
	w := newWriter(t, f)
	first := w.assign(0, cluster(1, "192.0.2.1:1", "192.0.2.2:2"))
	w.assign(0, cluster(2, "192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3"))
	w.carryOut()
	for name, svc := range map[string]Service{
		"backends":  cluster(3, "192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3", "192.0.2.4:4", "192.0.2.5:5", "192.0.2.6:6"),
		"frontends": manyFrontends(cluster(3, "192.0.2.1:1"), 3),
	} {
		if _, err := w.p.Assign(0, svc); !errors.Is(err, ErrFull) {
			t.Errorf("no room for %s: %v", name, err)
		}
		if !w.p.Plan().Empty() {
			t.Errorf("no room for %s: planned %+v", name, w.p.Plan())
		}
	}
	// What goes makes room, but only once it is gone.
	w.p.Remove(first)
	six := cluster(3, "192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3", "192.0.2.4:4", "192.0.2.5:5", "192.0.2.6:6")
	if _, err := w.p.Assign(0, six); !errors.Is(err, ErrFull) {
		t.Errorf("the room of a set that still is there: %v", err)
	}
	w.carryOut()
	w.assign(0, six)
	w.carryOut()
	checkWhole(t, mustRead(t, f))
}

// A long life of a planner, whose own idea of the table is compared with the table after each plan.
func TestPlannerThatLivesOn(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 7))
		f := NewFake(4096)
		ensure(t, f, InitIndexes, kubernetes("192.0.2.1:1"))
		w := newWriter(t, f)
		indexes := map[int]uint32{}
		for range 150 {
			for range 1 + r.IntN(5) {
				n := r.IntN(12)
				if r.IntN(4) == 0 {
					if indexes[n] != 0 {
						w.p.Remove(indexes[n])
						delete(indexes, n)
					}
					continue
				}
				svc := cluster(n, "192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3")
				svc.Backends = svc.Backends[:r.IntN(4)]
				svc.Sticky = r.IntN(2) == 0
				svc.Affinity = time.Duration(r.IntN(3)) * time.Hour
				svc.Frontends = append(svc.Frontends, tcp(fmt.Sprintf("203.0.113.%d:%d", n, 80+r.IntN(2))))
				if r.IntN(2) == 0 {
					svc.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{svc.Frontends[0]: bpf.FrontendLocalPolicy}
					svc.Local = svc.Backends[:r.IntN(len(svc.Backends)+1)]
				}
				indexes[n] = w.assign(indexes[n], svc)
			}
			before, after := mustRead(t, f), w.p.State().clone()
			_ = before
			w.carryOut()
			if !maps.Equal(after.Frontends, f.state.Frontends) {
				t.Fatalf("history %d: frontends differ", seed)
			}
			checkWhole(t, mustRead(t, f))
			if t.Failed() {
				t.Fatalf("history %d", seed)
			}
		}
	}
}

// Until init or run comes, a newer status looks at a table that lacks the maps which came later.
func TestKernelReadsATableOfAFormerVersion(t *testing.T) {
	pins := bpf.PinsBelow(lab.New(t).BPFFS)
	m, err := bpf.EnsureMaps(pins, bpf.Sizes{})
	if err != nil {
		t.Fatal(err)
	}
	ensure(t, NewKernel(m, bpf.Features{}), InitIndexes, kubernetes("192.0.2.1:1"))
	m.Close()
	for _, pin := range pins.MapPins(bpf.MapSourceRange) {
		if err := os.Remove(pin); err != nil {
			t.Fatal(err)
		}
	}
	if m, err = bpf.OpenMaps(pins, true); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	wantVerdict(t, mustRead(t, NewKernel(m, bpf.Features{})), tcp("10.96.0.1:443"), "192.0.2.1:1")
}
