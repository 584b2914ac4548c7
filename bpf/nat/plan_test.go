package nat

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bpf"
)

func TestPlanOfAFirstSeed(t *testing.T) {
	f := NewFake(2048)
	ensure(t, f, InitIndexes, kubernetes("192.0.2.1:6443", "192.0.2.2:6443"))
	s := mustRead(t, f)
	wantVerdict(t, s, tcp("10.96.0.1:443"), "192.0.2.1:6443", "192.0.2.2:6443")
	wantVerdict(t, s, tcp("10.96.0.1:444"), "refused")
	wantVerdict(t, s, udp("10.96.0.1:443"), "refused")
	wantVerdict(t, s, tcp("10.96.0.2:443"), "not ours")
	if got := s.Indexes(); !slices.Equal(got, []uint32{1}) {
		t.Errorf("indexes %v, want 1", got)
	}
	checkWhole(t, s)
}

func TestPlanIsEmptyForWhatIsSo(t *testing.T) {
	for _, tc := range []struct {
		name        string
		first, then Service
	}{
		{"the same again", kubernetes("192.0.2.1:1", "192.0.2.2:2"), kubernetes("192.0.2.1:1", "192.0.2.2:2")},
		{"another order", kubernetes("192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3"), kubernetes("192.0.2.3:3", "192.0.2.1:1", "192.0.2.2:2")},
		{"one twice", kubernetes("192.0.2.1:1", "192.0.2.2:2"), kubernetes("192.0.2.1:1", "192.0.2.2:2", "192.0.2.1:1")},
		{"one v4-mapped", kubernetes("192.0.2.1:1"), kubernetes("[::ffff:192.0.2.1]:1")},
		{"sticky", sticky(kubernetes("192.0.2.1:1", "192.0.2.2:2")), sticky(kubernetes("192.0.2.2:2", "192.0.2.1:1"))},
		{"without backends", empty(kubernetes()), empty(kubernetes())},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := NewFake(2048)
			ensure(t, f, InitIndexes, tc.first)
			before, writes := mustRead(t, f), f.Writes
			if plan := planFor(t, f, InitIndexes, tc.then); !plan.Empty() || plan.Generation != 0 {
				t.Errorf("planned %+v", plan)
			}
			ensure(t, f, InitIndexes, tc.then)
			if f.Writes != writes || !sameTable(before, mustRead(t, f)) {
				t.Errorf("%d writes", f.Writes-writes)
			}
		})
	}
}

func sticky(s Service) Service { s.Sticky = true; return s }
func empty(s Service) Service  { s.AllowEmpty = true; return s }

func TestPlanOfChangedBackends(t *testing.T) {
	f := NewFake(2048)
	ensure(t, f, InitIndexes, kubernetes("192.0.2.1:1", "192.0.2.2:2"))
	before := mustRead(t, f)
	plan := planFor(t, f, InitIndexes, kubernetes("192.0.2.2:2", "192.0.2.3:3"))
	if len(plan.NewSets) != 1 || len(plan.ServiceStates) != 1 || len(plan.OldSets) != 1 || len(plan.Puts) != 0 {
		t.Fatalf("planned %+v, want one new set, one state, one old set", plan)
	}
	carryOut(t, f, plan)
	s := mustRead(t, f)
	wantVerdict(t, s, tcp("10.96.0.1:443"), "192.0.2.2:2", "192.0.2.3:3")
	if !maps.Equal(before.Frontends, s.Frontends) {
		t.Errorf("frontends were %v, are %v", before.Frontends, s.Frontends)
	}
	checkWhole(t, s)
}

// A set id is not used again while a program may still look for what it held before.
func TestSetIDsAreNotUsedAgain(t *testing.T) {
	f := NewFake(2048)
	seen := map[uint32]bool{}
	for i := range 50 {
		ensure(t, f, InitIndexes, kubernetes(fmt.Sprintf("192.0.2.1:%d", i+1)))
		for id := range mustRead(t, f).Sets {
			if seen[id] {
				t.Errorf("round %d uses set %d again", i, id)
			}
			seen[id] = true
		}
	}
	// After 2^30 sets, ids begin again, and skip 0 and those in use.
	f.state.Generation = 1<<32 - 2
	f.state.Sets[1] = map[uint32]bpf.Backend{0: {Port: bpf.PortOf(9)}}
	f.state.ServiceStates[bpf.ServiceStateAt(2000, false)] = bpf.ServiceStateOf(1, 1)
	f.state.Frontends[tcp("10.0.0.1:1")] = bpf.Frontend{Index: 2000}
	for i, want := range []uint32{1<<30 - 1, 2, 3} {
		ensure(t, f, InitIndexes, kubernetes(fmt.Sprintf("192.0.2.9:%d", i+1)))
		s := mustRead(t, f)
		if got := s.ServiceStates[bpf.ServiceStateAt(1, false)].Set(); got != want {
			t.Errorf("set %d after the wrap, want %d", got, want)
		}
		if len(s.Sets[1]) != 1 {
			t.Error("the set of another service was overwritten")
		}
	}
}

// A writer that was killed may have noted a generation that is lower than what it wrote.
func TestSetIDsSkipWhatIsThere(t *testing.T) {
	f := NewFake(2048)
	ensure(t, f, InitIndexes, kubernetes("192.0.2.1:1"))
	f.state.Generation = 0
	ensure(t, f, InitIndexes, kubernetes("192.0.2.2:1"))
	wantVerdict(t, mustRead(t, f), tcp("10.96.0.1:443"), "192.0.2.2:1")
}

func TestEnsureRefusesServicesOfTheRuntime(t *testing.T) {
	f := NewFake(2048)
	ensure(t, f, runtimeIndexes, kubernetes("192.0.2.1:1"))
	before := mustRead(t, f)
	p := NewPlanner(mustRead(t, f), InitIndexes)
	if err := p.Ensure(kubernetes("192.0.2.2:2")); !errors.Is(err, ErrOwned) || !strings.Contains(err.Error(), "1024") {
		t.Errorf("got %v, want ErrOwned with the index", err)
	}
	if !p.Plan().Empty() {
		t.Errorf("planned %+v", p.Plan())
	}
	index, found, err := p.Owner(kubernetes())
	if index != 1024 || !found || err != nil {
		t.Fatalf("Owner: %d, %v, %v", index, found, err)
	}
	if err := p.Replace(index, addrs("192.0.2.1:1", "192.0.2.2:2")); err != nil {
		t.Fatal(err)
	}
	carryOut(t, f, p.Plan())
	s := mustRead(t, f)
	wantVerdict(t, s, tcp("10.96.0.1:443"), "192.0.2.1:1", "192.0.2.2:2")
	if !maps.Equal(before.Frontends, s.Frontends) {
		t.Errorf("frontends were %v, are %v", before.Frontends, s.Frontends)
	}
	checkWhole(t, s)
}

func TestReplaceKeepsStickiness(t *testing.T) {
	f := NewFake(2048)
	ensure(t, f, runtimeIndexes, sticky(kubernetes("192.0.2.1:1")))
	p := NewPlanner(mustRead(t, f), InitIndexes)
	if err := p.Replace(1024, addrs("192.0.2.1:1", "192.0.2.2:2")); err != nil {
		t.Fatal(err)
	}
	carryOut(t, f, p.Plan())
	s := mustRead(t, f)
	if set := s.Sets[s.ServiceStates[bpf.ServiceStateAt(1024, false)].Set()]; len(set) != 4 {
		t.Errorf("the set has %d entries, want two slots and two members", len(set))
	}
}

// Traffic to local backends has a state of its own, which may name the same set: what is replaced must not stay in use by it.
func TestReplaceServesTheLocalPolicyToo(t *testing.T) {
	f := NewFake(2048)
	ensure(t, f, runtimeIndexes, kubernetes("192.0.2.1:1"))
	w := f.state.ServiceStates[bpf.ServiceStateAt(1024, false)]
	f.state.ServiceStates[bpf.ServiceStateAt(1024, true)] = w
	local := tcp("192.0.2.99:30000")
	f.state.Frontends[local] = bpf.Frontend{Index: 1024, Flags: bpf.FrontendLocalPolicy}
	p := NewPlanner(mustRead(t, f), InitIndexes)
	if err := p.Replace(1024, addrs("192.0.2.2:2")); err != nil {
		t.Fatal(err)
	}
	carryOut(t, f, p.Plan())
	s := mustRead(t, f)
	wantVerdict(t, s, tcp("10.96.0.1:443"), "192.0.2.2:2")
	wantVerdict(t, s, local, "192.0.2.2:2")
	checkWhole(t, s)
}

// The init stage joins services of its own, but never those of the runtime.
func TestEnsureJoinsFrontendsOfSeveralServices(t *testing.T) {
	second := func(s Service) Service {
		s.Frontends, s.VIPs = []bpf.FrontendKey{tcp("10.96.0.9:443")}, nil
		return s
	}
	for _, tt := range []struct {
		name       string
		first, own Indexes // of the service that is there first; of the second
		want       string
	}{
		{"both the init stage's: one of them", InitIndexes, InitIndexes, ""},
		{"the second is the runtime's: its own", InitIndexes, runtimeIndexes, ErrOwned.Error()},
		{"both the runtime's: nothing that we could choose", runtimeIndexes, runtimeIndexes, "of another writer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := NewFake(2048)
			a, b := kubernetes("192.0.2.1:1"), second(kubernetes("192.0.2.2:2"))
			ensure(t, f, tt.first, a)
			ensure(t, f, tt.own, b)
			p := NewPlanner(mustRead(t, f), InitIndexes)
			a.Frontends = append(a.Frontends, b.Frontends...)
			err := p.Ensure(a)
			if tt.want == "" {
				if err != nil || len(p.State().Indexes()) != 1 {
					t.Errorf("got %v and indexes %v, want one", err, p.State().Indexes())
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !p.Plan().Empty() {
				t.Errorf("got %v and %+v, want %q and nothing planned", err, p.Plan(), tt.want)
			}
		})
	}
}

func TestEnsureAddsAFrontend(t *testing.T) {
	f := NewFake(2048)
	svc := kubernetes("192.0.2.1:1")
	ensure(t, f, InitIndexes, svc)
	svc.Frontends = append(svc.Frontends, tcp("10.96.0.1:6443"))
	ensure(t, f, InitIndexes, svc)
	s := mustRead(t, f)
	wantVerdict(t, s, tcp("10.96.0.1:443"), "192.0.2.1:1")
	wantVerdict(t, s, tcp("10.96.0.1:6443"), "192.0.2.1:1")
	if got := s.FrontendsOf(1); len(got) != 2 || len(s.Indexes()) != 1 {
		t.Errorf("frontends %v of indexes %v", got, s.Indexes())
	}
	// Those that svc doesn't name stay: it is not for the init stage to take ports away.
	ensure(t, f, InitIndexes, kubernetes("192.0.2.1:1"))
	wantVerdict(t, mustRead(t, f), tcp("10.96.0.1:6443"), "192.0.2.1:1")
}

func TestEnsureWithoutAFreeIndex(t *testing.T) {
	service := func(i int) Service {
		s := kubernetes("192.0.2.1:1")
		s.VIPs = nil
		s.Frontends = []bpf.FrontendKey{tcp(fmt.Sprintf("10.0.%d.%d:1", i/256, i%256))}
		return s
	}
	for _, tc := range []struct {
		name     string
		services uint32
		own      Indexes
		room     int
	}{
		{"the init stage's range", 65536, InitIndexes, 1023},
		{"a table that is smaller than the range", 8, InitIndexes, 7},
		{"a table without room for the runtime", 1024, runtimeIndexes, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := NewPlanner(NewState(tc.services), tc.own)
			for i := range tc.room {
				if err := p.Ensure(service(i)); err != nil {
					t.Fatalf("service %d: %v", i, err)
				}
			}
			puts := len(p.Plan().Puts)
			if err := p.Ensure(service(tc.room)); !errors.Is(err, ErrNoIndex) {
				t.Errorf("service %d: %v, want ErrNoIndex", tc.room, err)
			}
			if len(p.Plan().Puts) != puts {
				t.Error("the service that has no index is in the plan")
			}
			for i, k := range p.State().Indexes() {
				if k == 0 || !tc.own.Contains(k) || k >= tc.services {
					t.Errorf("index %d of service %d is not of the range", k, i)
				}
			}
		})
	}
}

// A socket remembers its backend by this id through any change of the others.
func TestMemberIDsStay(t *testing.T) {
	f := NewFake(2048)
	ids := func() map[netip.AddrPort]uint32 {
		s := mustRead(t, f)
		set, out := s.Sets[s.ServiceStates[bpf.ServiceStateAt(1, false)].Set()], map[netip.AddrPort]uint32{}
		for slot, be := range set {
			if slot&bpf.BackendMember != 0 && slot != be.ID {
				t.Errorf("member %#x has id %#x", slot, be.ID)
			}
			if be.ID&bpf.BackendMember == 0 {
				t.Errorf("id %#x lacks the member bit", be.ID)
			}
			out[be.AddrPort()] = be.ID
		}
		if len(set) != 2*len(out) {
			t.Errorf("%d entries for %d backends, want a slot and a member each", len(set), len(out))
		}
		return out
	}
	former := map[netip.AddrPort]uint32{}
	for _, backends := range [][]string{
		{"192.0.2.1:1"}, {"192.0.2.2:1", "192.0.2.1:1"}, {"192.0.2.3:1", "192.0.2.2:1", "192.0.2.1:1"}, {"192.0.2.2:1"}, {"192.0.2.2:1", "192.0.2.4:1"},
	} {
		ensure(t, f, InitIndexes, sticky(kubernetes(backends...)))
		now := ids()
		for b, id := range now {
			if was, ok := former[b]; ok && was != id {
				t.Errorf("%v was %#x, is %#x", b, was, id)
			}
		}
		if distinct := slices.Compact(slices.Sorted(maps.Values(now))); len(distinct) != len(now) {
			t.Errorf("two backends have one id: %v", now)
		}
		former = now
	}
	// One that was never sticky becomes it: the ids were there all the time.
	ensure(t, f, InitIndexes, kubernetes("192.0.2.2:1", "192.0.2.4:1"))
	ensure(t, f, InitIndexes, sticky(kubernetes("192.0.2.2:1", "192.0.2.4:1")))
	if now := ids(); !maps.Equal(now, former) {
		t.Errorf("ids were %v, are %v", former, now)
	}
}

func TestMemberIDsOfHashesThatCollide(t *testing.T) {
	a := netip.MustParseAddrPort("192.0.2.1:1")
	wanted := memberIDs([]netip.AddrPort{a}, nil)[0]
	// The former set gave a's hash to b.
	b := netip.MustParseAddrPort("192.0.2.2:1")
	former := map[uint32]bpf.Backend{0: {Addr: bpf.AddressOf(b.Addr()), Port: bpf.PortOf(1), ID: wanted}}
	ids := memberIDs([]netip.AddrPort{a, b}, former)
	if ids[0] == ids[1] || ids[1] != wanted || ids[0]&bpf.BackendMember == 0 {
		t.Errorf("ids %#x, want the second to be %#x and the first another member id", ids, wanted)
	}
}
