package nat

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

// The sizes of the stores under test: a full map must be quick to fill.
const (
	testServices  = 1200
	testFrontends = 64
	testBackends  = 64
)

func stores(t *testing.T) map[string]func(t *testing.T) Store {
	kernel := func(f bpf.Features) func(t *testing.T) Store {
		return func(t *testing.T) Store {
			sizes := bpf.Sizes{Frontends: testFrontends, Services: testServices, Backends: testBackends}
			m, err := bpf.EnsureMaps(bpf.PinsBelow(lab.New(t).BPFFS), sizes)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { m.Close() })
			return NewKernel(m, f)
		}
	}
	stores := map[string]func(t *testing.T) Store{
		"Fake": func(t *testing.T) Store {
			f := NewFake(testServices)
			f.MaxFrontends, f.MaxBackends = testFrontends, testBackends
			return f
		},
	}
	for name, f := range waysToWrite() {
		stores["Kernel, "+name] = kernel(f)
	}
	return stores
}

// TestConformance holds every Store to one meaning: what the planner is tested with is what the kernel does.
func TestConformance(t *testing.T) {
	tests := []struct {
		name string
		run  func(t *testing.T, s Store)
	}{
		{"an empty table reads as empty", readsEmpty},
		{"what is written is read", readsWhatIsWritten},
		{"keys that are not there can be deleted", deletesWhatIsNotThere},
		{"frontends that are there change, others don't come", changesWhatIsThere},
		{"a state past the end is an error", refusesWordsPastTheEnd},
		{"a full map takes back what it took, and says so", saysWhenFull},
		{"a copy that was read isn't the table", copies},
		{"plans are carried out, taken back and committed", carriesPlansOut},
		{"the whole of a larger table is read", readsLargeTables},
	}
	for name, create := range stores(t) {
		t.Run(name, func(t *testing.T) {
			for _, tc := range tests {
				t.Run(tc.name, func(t *testing.T) { tc.run(t, create(t)) })
			}
		})
	}
}

func readsEmpty(t *testing.T, s Store) {
	state := mustRead(t, s)
	if want := NewState(testServices); !sameTable(state, want) || state.Generation != 0 {
		t.Errorf("read %+v, want %+v", state, want)
	}
}

func readsWhatIsWritten(t *testing.T, s Store) {
	want := NewState(testServices)
	want.Generation = 1<<40 + 7
	want.Frontends[tcp("10.96.0.1:443")] = bpf.Frontend{Index: 1}
	want.Frontends[udp("[fd00::1]:53")] = bpf.Frontend{Index: 1030, Flags: bpf.FrontendSticky | bpf.FrontendLocalPolicy}
	want.Frontends[bpf.FrontendKey{Addr: tcp("10.96.0.1:1").Addr}] = bpf.Frontend{Flags: bpf.FrontendVIP}
	want.ServiceStates[bpf.ServiceStateAt(1, false)] = bpf.ServiceStateOf(7, 2)
	want.ServiceStates[bpf.ServiceStateAt(1, true)] = bpf.ServiceStateOf(8, 1)
	want.ServiceStates[bpf.ServiceStateAt(1023, false)] = bpf.ServiceStateOf(9, 1)
	want.ServiceStates[bpf.ServiceStateAt(1030, true)] = bpf.ServiceStateOf(1<<32-1, 1<<20)
	be := bpf.Backend{Addr: bpf.AddressOf(addrs("192.0.2.1:1")[0].Addr()), Port: bpf.PortOf(6443), ID: bpf.BackendMember | 5}
	want.Sets[7] = map[uint32]bpf.Backend{0: be, 1: {ID: bpf.BackendMember}, be.ID: be}
	want.Sets[1<<32-1] = map[uint32]bpf.Backend{0: be}

	keys, values := flatten([]Set{{7, want.Sets[7]}, {1<<32 - 1, want.Sets[1<<32-1]}})
	must(t, s.PutBackends(keys, values))
	var places []uint32
	var states []bpf.ServiceState
	for at, w := range want.ServiceStates {
		places, states = append(places, at), append(states, w)
	}
	must(t, s.PutServiceStates(places, states))
	for k, fe := range want.Frontends {
		must(t, s.PutFrontends([]bpf.FrontendKey{k}, []bpf.Frontend{fe}))
	}
	must(t, s.PutGeneration(want.Generation))
	if got := mustRead(t, s); !sameTable(got, want) || got.Generation != want.Generation {
		t.Errorf("read %+v, want %+v", got, want)
	}

	must(t, s.PutServiceStates([]uint32{bpf.ServiceStateAt(1, true)}, []bpf.ServiceState{0}))
	must(t, s.DeleteBackends([]bpf.BackendKey{{Set: 7, Slot: 1}}))
	must(t, s.DeleteFrontends([]bpf.FrontendKey{udp("[fd00::1]:53")}))
	must(t, s.PutFrontends([]bpf.FrontendKey{tcp("10.96.0.1:443")}, []bpf.Frontend{{Index: 1031}})) // so that state 1030 is still read
	delete(want.ServiceStates, bpf.ServiceStateAt(1, true))
	delete(want.Sets[7], 1)
	delete(want.Frontends, udp("[fd00::1]:53"))
	want.Frontends[tcp("10.96.0.1:443")] = bpf.Frontend{Index: 1031}
	if got := mustRead(t, s); !sameTable(got, want) {
		t.Errorf("after changes: read %+v, want %+v", got, want)
	}
	must(t, s.Synchronize())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func deletesWhatIsNotThere(t *testing.T, s Store) {
	must(t, s.PutBackends([]bpf.BackendKey{{Set: 1, Slot: 1}}, []bpf.Backend{{}}))
	must(t, s.DeleteBackends([]bpf.BackendKey{{Set: 1, Slot: 0}, {Set: 1, Slot: 1}, {Set: 9, Slot: 9}}))
	must(t, s.DeleteFrontends([]bpf.FrontendKey{tcp("10.0.0.1:1"), udp("10.0.0.1:1")}))
	must(t, s.DeleteBackends(nil))
	must(t, s.DeleteFrontends(nil))
	must(t, s.PutBackends(nil, nil))
	must(t, s.PutFrontends(nil, nil))
	readsEmpty(t, s)
}

func changesWhatIsThere(t *testing.T, s Store) {
	a, b, gone := tcp("10.96.0.1:443"), udp("[fd00::1]:53"), tcp("10.96.0.1:80")
	must(t, s.PutFrontends([]bpf.FrontendKey{a, b}, []bpf.Frontend{{Index: 1}, {Index: 2, Flags: bpf.FrontendSticky}}))
	must(t, s.ChangeFrontends(nil, nil))
	to := bpf.Frontend{Index: 1<<32 - 1, Flags: bpf.FrontendLocalPolicy | bpf.FrontendSourceRange}
	if err := s.ChangeFrontends([]bpf.FrontendKey{b, gone, a}, []bpf.Frontend{to, to, to}); !errors.Is(err, errGone) || !strings.Contains(err.Error(), "10.96.0.1:80") {
		t.Errorf("one that isn't there: %v", err)
	}
	want := map[bpf.FrontendKey]bpf.Frontend{a: {Index: 1}, b: to}
	if got := mustRead(t, s).Frontends; !maps.Equal(got, want) {
		t.Errorf("read %+v, want %+v", got, want)
	}
}

func refusesWordsPastTheEnd(t *testing.T, s Store) {
	state := []bpf.ServiceState{bpf.ServiceStateOf(1, 1)}
	must(t, s.PutServiceStates([]uint32{2*testServices - 1}, state))
	if err := s.PutServiceStates([]uint32{2 * testServices}, state); err == nil {
		t.Error("a state past the end was taken")
	}
}

func manyBackends(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("192.0.%d.%d:6443", i/250, i%250+1))
	}
	return out
}

func saysWhenFull(t *testing.T, s Store) {
	ensure(t, s, InitIndexes, kubernetes(manyBackends(20)...))
	before := mustRead(t, s)
	for _, tc := range []struct {
		name string
		svc  Service
	}{
		{"backends", kubernetes(manyBackends(testBackends - 5)...)},
		{"one backend too many in a row of one by one", kubernetes(manyBackends(testBackends + 1)...)},
		{"frontends", manyFrontends(kubernetes("192.0.2.1:1"), testFrontends+1)},
	} {
		if _, err := Apply(s, planBlindly(t, s, InitIndexes, tc.svc)); !errors.Is(err, ErrFull) {
			t.Errorf("%s: %v, want ErrFull", tc.name, err)
		}
		if now := mustRead(t, s); !sameTable(before, now) {
			t.Errorf("%s: the table was %+v, is %+v", tc.name, before, now)
		}
	}
}

func manyFrontends(svc Service, n int) Service {
	for i := range n {
		svc.Frontends = append(svc.Frontends, tcp(fmt.Sprintf("10.1.%d.%d:443", i/250, i%250+1)))
	}
	return svc
}

func copies(t *testing.T, s Store) {
	ensure(t, s, InitIndexes, kubernetes("192.0.2.1:1"))
	state := mustRead(t, s)
	clear(state.Frontends)
	clear(state.ServiceStates)
	for _, set := range state.Sets {
		clear(set)
	}
	wantVerdict(t, mustRead(t, s), tcp("10.96.0.1:443"), "192.0.2.1:1")
}

func carriesPlansOut(t *testing.T, s Store) {
	ensure(t, s, InitIndexes, kubernetes("192.0.2.1:1", "192.0.2.2:2"), dns("192.0.2.7:53"))
	before := mustRead(t, s)
	checkWhole(t, before)
	plan := planFor(t, s, InitIndexes, twoPorts(kubernetes("192.0.2.3:3")), dns("192.0.2.8:53", "192.0.2.9:53"))
	applied, err := Apply(s, plan)
	must(t, err)
	wantVerdict(t, mustRead(t, s), tcp("10.96.0.1:443"), "192.0.2.3:3")
	wantVerdict(t, mustRead(t, s), tcp("10.96.0.1:6443"), "192.0.2.3:3")
	must(t, applied.Rollback())
	if now := mustRead(t, s); !sameTable(before, now) {
		t.Errorf("after Rollback the table was %+v, is %+v", before, now)
	}
	ensure(t, s, InitIndexes, twoPorts(kubernetes("192.0.2.3:3")), dns("192.0.2.8:53", "192.0.2.9:53"))
	s2 := mustRead(t, s)
	wantVerdict(t, s2, udp("10.96.0.10:53"), "192.0.2.8:53", "192.0.2.9:53")
	checkWhole(t, s2)
	if len(s2.Sets) != 2 {
		t.Errorf("sets %v, want those of two services", maps.Keys(s2.Sets))
	}
}

func readsLargeTables(t *testing.T, s Store) {
	svc := manyFrontends(kubernetes(manyBackends(testBackends)...), testFrontends-2)
	ensure(t, s, InitIndexes, svc)
	state := mustRead(t, s)
	if len(state.Frontends) != testFrontends || len(state.Sets[1]) != testBackends {
		t.Errorf("%d frontends, %d backends, want %d, %d", len(state.Frontends), len(state.Sets[1]), testFrontends, testBackends)
	}
	wantVerdict(t, state, svc.Frontends[40], manyBackends(testBackends)...)
}

// One call of the kernel copies 2048 entries: a table beyond that takes several, and all must be there.
func TestKernelReadsMoreThanOneChunk(t *testing.T) {
	const entries = 3*2048 + 17
	m, err := bpf.EnsureMaps(bpf.PinsBelow(lab.New(t).BPFFS), bpf.Sizes{Frontends: entries, Services: entries, Backends: entries})
	must(t, err)
	defer m.Close()
	k := NewKernel(m, bpf.Features(lab.KernelFeatures()))
	var keys []bpf.BackendKey
	var values []bpf.Backend
	for i := range uint32(entries) {
		keys = append(keys, bpf.BackendKey{Set: i, Slot: i % 3})
		values = append(values, bpf.Backend{ID: i})
	}
	must(t, k.PutBackends(keys, values))
	must(t, k.PutFrontends([]bpf.FrontendKey{tcp("10.0.0.1:1")}, []bpf.Frontend{{Index: entries - 1}}))
	for i := range uint32(entries) {
		must(t, k.PutServiceStates([]uint32{bpf.ServiceStateAt(i, false)}, []bpf.ServiceState{bpf.ServiceStateOf(i, 1)}))
	}
	for name, f := range waysToWrite() {
		s := mustRead(t, NewKernel(m, f))
		if len(s.Sets) != entries || len(s.ServiceStates) != entries {
			t.Errorf("%s: %d sets, %d states, want %d", name, len(s.Sets), len(s.ServiceStates), entries)
		}
		for i := range uint32(entries) {
			if be, ok := s.Sets[i][i%3]; !ok || be.ID != i {
				t.Fatalf("%s: set %d is %v", name, i, s.Sets[i])
			}
		}
	}
}
