package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bpf"
)

// change is a table and what is to become of it.
type change struct {
	name string
	from func(t testing.TB, f *Fake)
	own  Indexes
	to   []Service
}

func dns(backends ...string) Service {
	return Service{
		Name:      "kube-system/kube-dns:dns",
		Frontends: []bpf.FrontendKey{udp("10.96.0.10:53"), tcp("10.96.0.10:53")},
		VIPs:      nil,
		Backends:  addrs(backends...),
		Sticky:    true,
	}
}

// changes are what may happen to a table, with every kind of write in one of them.
func changes() []change {
	nothing := func(testing.TB, *Fake) {}
	two := func(t testing.TB, f *Fake) {
		ensure(t, f, InitIndexes, kubernetes("192.0.2.1:1", "192.0.2.2:2"), dns("192.0.2.7:53", "192.0.2.8:53"))
	}
	return []change{
		{"a first seed", nothing, InitIndexes, []Service{kubernetes("192.0.2.1:1", "192.0.2.2:2"), dns("192.0.2.7:53")}},
		{"other backends", two, InitIndexes, []Service{kubernetes("192.0.2.3:3", "192.0.2.2:2"), dns("192.0.2.9:53")}},
		{"fewer backends", two, InitIndexes, []Service{kubernetes("192.0.2.2:2"), dns("192.0.2.7:53")}},
		{"another frontend and other backends", two, InitIndexes, []Service{twoPorts(kubernetes("192.0.2.4:4")), dns("192.0.2.8:53")}},
		{"stickiness lost", two, InitIndexes, []Service{func() Service { s := dns("192.0.2.8:53"); s.Sticky = false; return s }()}},
		{"no backends, where that is meant", two, InitIndexes, []Service{empty(dns()), kubernetes("192.0.2.9:1")}},
		{"two services joined into one", func(t testing.TB, f *Fake) {
			a, b := kubernetes("192.0.2.1:1"), kubernetes("192.0.2.2:2", "192.0.2.3:3")
			b.Frontends, b.VIPs = []bpf.FrontendKey{tcp("10.96.0.9:443")}, addrsOnly("10.96.0.9")
			ensure(t, f, InitIndexes, a, b)
		}, InitIndexes, []Service{func() Service {
			s := kubernetes("192.0.2.1:1", "192.0.2.2:2")
			s.Frontends, s.VIPs = append(s.Frontends, tcp("10.96.0.9:443")), addrsOnly("10.96.0.1", "10.96.0.9")
			return s
		}()}},
		{"removed: the service that isn't wanted", two, InitIndexes, []Service{dns("192.0.2.7:53", "192.0.2.8:53")}},
		{"removed: one of two that share an address", func(t testing.TB, f *Fake) {
			b := dns("192.0.2.7:53")
			b.Frontends = []bpf.FrontendKey{udp("10.96.0.1:53"), tcp("10.96.0.1:53")}
			b.VIPs = addrsOnly("10.96.0.1")
			ensure(t, f, InitIndexes, kubernetes("192.0.2.1:1"), b)
		}, InitIndexes, []Service{kubernetes("192.0.2.1:1")}},
		{"removed: everything", two, InitIndexes, nil},
		{"a mark taken away", two, InitIndexes, []Service{unmarked(kubernetes("192.0.2.9:1"))}},
		{"source ranges that come", two, InitIndexes, []Service{limited(kubernetes("192.0.2.1:1", "192.0.2.2:2"), "10.0.0.0/8"), dns("192.0.2.7:53", "192.0.2.8:53")}},
		{"source ranges that go", func(t testing.TB, f *Fake) {
			ensure(t, f, InitIndexes, limited(kubernetes("192.0.2.1:1"), "10.0.0.0/8", "198.51.100.0/24"))
		}, InitIndexes, []Service{kubernetes("192.0.2.2:2")}},
		{"a frontend that moves to another service, and both change", func(t testing.TB, f *Fake) {
			ensure(t, f, InitIndexes, twoPorts(kubernetes("192.0.2.1:1")), empty(dns()))
		}, InitIndexes, []Service{func() Service {
			s := kubernetes("192.0.2.1:1")
			s.Frontends = append(s.Frontends, dns().Frontends...)
			s.VIPs = nil
			return s
		}()}},
		{"a Local policy begins", two, InitIndexes, []Service{localOnly(kubernetes("192.0.2.1:1", "192.0.2.2:2"), "192.0.2.2:2"), dns("192.0.2.7:53", "192.0.2.8:53")}},
		{"a Local policy ends", func(t testing.TB, f *Fake) {
			ensure(t, f, InitIndexes, localOnly(kubernetes("192.0.2.1:1", "192.0.2.2:2"), "192.0.2.2:2"), localOnly(dns("192.0.2.7:53"), "192.0.2.7:53"))
		}, InitIndexes, []Service{kubernetes("192.0.2.1:1", "192.0.2.3:3"), dns("192.0.2.7:53")}},
		{"a Local policy that drops ends", func(t testing.TB, f *Fake) {
			ensure(t, f, InitIndexes, localOnly(kubernetes("192.0.2.1:1", "192.0.2.2:2")))
		}, InitIndexes, []Service{kubernetes("192.0.2.3:3")}},
		{"clients outside come", two, InitIndexes, []Service{external(kubernetes("192.0.2.1:1", "192.0.2.2:2"), 0), dns("192.0.2.7:53", "192.0.2.8:53")}},
		{"clients outside come under a Local policy", two, InitIndexes, []Service{
			external(kubernetes("192.0.2.1:1", "192.0.2.2:2"), bpf.FrontendExternalLocal, "192.0.2.2:2"), dns("192.0.2.7:53", "192.0.2.8:53")}},
		{"a Local policy for clients outside begins", outsiders(0), InitIndexes, []Service{
			external(kubernetes("192.0.2.1:1", "192.0.2.2:2"), bpf.FrontendExternalLocal, "192.0.2.2:2")}},
		{"a Local policy for clients outside begins, and none is local", outsiders(0), InitIndexes, []Service{
			external(kubernetes("192.0.2.1:1", "192.0.2.2:2"), bpf.FrontendExternalLocal)}},
		{"a Local policy for clients outside ends", outsiders(bpf.FrontendExternalLocal, "192.0.2.2:2"), InitIndexes, []Service{
			external(kubernetes("192.0.2.1:1", "192.0.2.2:2"), 0), dns("192.0.2.7:53")}},
		{"a Local policy for clients outside ends, and backends change", outsiders(bpf.FrontendExternalLocal, "192.0.2.2:2"), InitIndexes, []Service{
			external(kubernetes("192.0.2.1:1", "192.0.2.3:3"), 0)}},
		{"a Local policy for clients outside that drops ends", outsiders(bpf.FrontendExternalLocal), InitIndexes, []Service{
			external(kubernetes("192.0.2.3:3"), 0)}},
		{"removed: clients outside go, with their Local policy", outsiders(bpf.FrontendExternalLocal, "192.0.2.2:2"), InitIndexes, []Service{
			kubernetes("192.0.2.1:1", "192.0.2.2:2")}},
		{"a Local policy for clients inside ends, one for those outside begins", outsiders(bpf.FrontendLocalPolicy), InitIndexes, []Service{
			external(kubernetes("192.0.2.1:1", "192.0.2.2:2"), bpf.FrontendExternalLocal, "192.0.2.2:2")}},
		{"a Local policy for clients outside ends, one for those inside begins", outsiders(bpf.FrontendExternalLocal), InitIndexes, []Service{
			external(kubernetes("192.0.2.1:1", "192.0.2.2:2"), bpf.FrontendLocalPolicy, "192.0.2.2:2")}},
		{"a Local policy for clients inside that ended, and one for those outside begins", func(t testing.TB, f *Fake) {
			outsiders(bpf.FrontendLocalPolicy, "192.0.2.2:2")(t, f)
			outsiders(0)(t, f)
		}, InitIndexes, []Service{external(kubernetes("192.0.2.1:1", "192.0.2.2:2"), bpf.FrontendExternalLocal, "192.0.2.2:2")}},
		{"source ranges for clients outside that come", outsiders(0), InitIndexes, []Service{
			limitedOutside(external(kubernetes("192.0.2.1:1", "192.0.2.2:2"), 0), "198.51.100.0/24", "203.0.113.0/24")}},
		{"source ranges for clients outside that change", func(t testing.TB, f *Fake) {
			ensure(t, f, InitIndexes, limitedOutside(external(kubernetes("192.0.2.1:1"), 0), "203.0.113.0/25"))
		}, InitIndexes, []Service{limitedOutside(external(kubernetes("192.0.2.3:3"), 0), "203.0.113.0/26")}},
		{"source ranges for clients outside that go", func(t testing.TB, f *Fake) {
			ensure(t, f, InitIndexes, limitedOutside(external(kubernetes("192.0.2.1:1"), 0), "10.0.0.0/8"))
		}, InitIndexes, []Service{external(kubernetes("192.0.2.2:2"), 0)}},
		{"backends that are found to be on this node", two, InitIndexes, []Service{
			onNode(kubernetes("192.0.2.1:1", "192.0.2.2:2"), "192.0.2.2:2"), onNode(dns("192.0.2.7:53", "192.0.2.8:53"), "192.0.2.8:53")}},
		{"an index with a left-over state and no backends", func(t testing.TB, f *Fake) {
			f.state.Sets[3] = map[uint32]bpf.Backend{0: {Port: bpf.PortOf(1)}}
			f.state.ServiceStates[bpf.ServiceStateAt(1, false)] = bpf.ServiceStateOf(3, 1)
			f.state.ServiceStates[bpf.ServiceStateAt(1, true)] = bpf.ServiceStateOf(3, 1)
			f.state.Generation = 3
		}, InitIndexes, []Service{empty(dns())}},
		{"what a killed writer left behind", func(t testing.TB, f *Fake) {
			two(t, f)
			f.state.Sets[77] = map[uint32]bpf.Backend{0: {Port: bpf.PortOf(1)}, 1: {Port: bpf.PortOf(2)}}
			f.state.Sets[78] = map[uint32]bpf.Backend{0: {Port: bpf.PortOf(1)}}
			f.state.ServiceStates[bpf.ServiceStateAt(9, false)] = bpf.ServiceStateOf(78, 1)
			f.state.Generation = 78
			f.Writes++ // nothing fails before the first write otherwise
		}, InitIndexes, []Service{kubernetes("192.0.2.5:5"), dns("192.0.2.7:53")}},
	}
}

// localOnly is a Service whose frontends lead to local backends only.
func localOnly(s Service, local ...string) Service {
	s.Local, s.Flags = addrs(local...), map[bpf.FrontendKey]bpf.FrontendFlags{}
	for _, k := range s.Frontends {
		s.Flags[k] = bpf.FrontendLocalPolicy
	}
	return s
}

// limited is a Service whose frontends let clients of some ranges in.
func limited(s Service, ranges ...string) Service {
	s.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{}
	for _, k := range s.Frontends {
		s.Flags[k] = bpf.FrontendSourceRange
	}
	for _, r := range ranges {
		s.SourceRanges = append(s.SourceRanges, netip.MustParsePrefix(r))
	}
	return s
}

// outside is a client of external frontends.
var outside = netip.MustParseAddr("203.0.113.2")

// external is a Service whose frontends serve clients outside, with more flags.
func external(s Service, flags bpf.FrontendFlags, local ...string) Service {
	s.Flags, s.ExternalVIPs = map[bpf.FrontendKey]bpf.FrontendFlags{}, s.VIPs
	for _, k := range s.Frontends {
		s.Flags[k] = bpf.FrontendExternal | flags
	}
	if flags&localFlags != 0 {
		s.Local = addrs(local...)
	}
	return s
}

// outsiders makes a table of such a Service.
func outsiders(flags bpf.FrontendFlags, local ...string) func(testing.TB, *Fake) {
	return func(t testing.TB, f *Fake) {
		ensure(t, f, InitIndexes, external(kubernetes("192.0.2.1:1", "192.0.2.2:2"), flags, local...))
	}
}

// limitedOutside is a Service whose frontends allow clients outside of some ranges.
func limitedOutside(s Service, ranges ...string) Service {
	for _, k := range s.Frontends {
		s.Flags[k] |= bpf.FrontendExternalRange
	}
	for _, r := range ranges {
		s.SourceRanges = append(s.SourceRanges, netip.MustParsePrefix(r))
	}
	return s
}

func onNode(s Service, list ...string) Service { s.OnNode = addrs(list...); return s }

func unmarked(s Service) Service { s.VIPs = nil; return s }

func addrsOnly(ss ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func twoPorts(s Service) Service {
	s.Frontends = append(slices.Clone(s.Frontends), tcp("10.96.0.1:6443"))
	return s
}

// start makes a fake that has done at least one write, so that FailAfter can name the next.
func (c change) start(t testing.TB) *Fake {
	f := NewFake(2048)
	if err := f.PutGeneration(0); err != nil {
		t.Fatal(err)
	}
	c.from(t, f)
	return f
}

// asked are all the frontends that a client may ask for, before or after: those of both states, and other ports.
func asked(states ...*State) []bpf.FrontendKey {
	keys := []bpf.FrontendKey{tcp("10.96.0.1:9"), tcp("10.96.0.1:65535"), udp("10.96.0.1:443"), tcp("203.0.113.1:443")}
	for _, s := range states {
		for k := range s.Frontends {
			if k.Proto != 0 {
				keys = append(keys, k)
			}
		}
	}
	return keys
}

// watch fails the test if a write leaves any frontend with another verdict than before or after the change. What is no
// longer served to clients outside may be refused first, as long as the address is marked.
func watch(t testing.TB, f *Fake, before, after *State) {
	graces := f.Graces
	var watchers []func(*State)
	for name, look := range map[string]look{"inside": verdict, "outside": verdictOutside} {
		old, planned := map[bpf.FrontendKey]string{}, map[bpf.FrontendKey]string{}
		for _, k := range asked(before, after) {
			old[k], planned[k] = look(before, k), look(after, k)
		}
		watchers = append(watchers, func(s *State) {
			if f.Graces == graces {
				watchHeldUp(t, f, s, before, old, planned, look)
			}
			for k := range old {
				if got := look(s, k); got != old[k] && got != planned[k] && !(got == string(Refused) && planned[k] == string(NotOurs)) {
					t.Errorf("after write %d, %v goes from %s to %s, was %s, is to be %s", f.Writes, k, name, got, old[k], planned[k])
				}
			}
		})
	}
	f.Observe = func(s *State) {
		for _, w := range watchers {
			w(s)
		}
	}
}

// look is verdict or verdictOutside.
type look func(*State, bpf.FrontendKey) string

// watchHeldUp fails the test if a program that read a frontend, or a state, before the change began, and was held up since,
// would get anything but what it had got before or would get after the change. Until a grace period is over, one may be.
func watchHeldUp(t testing.TB, f *Fake, now, before *State, old, planned map[bpf.FrontendKey]string, look look) {
	for k, fe := range before.Frontends {
		if fe.Flags&bpf.FrontendVIP != 0 {
			continue
		}
		held := *now
		held.Frontends = map[bpf.FrontendKey]bpf.Frontend{k: fe}
		if mark := bpf.ExternalVIPKeyOf(k.Addr.Addr()); fe.Flags&bpf.FrontendExternal == 0 && before.Frontends[mark].Mark() {
			held.Frontends[mark] = before.Frontends[mark]
		}
		if got := look(&held, k); got != old[k] && got != planned[k] {
			t.Errorf("after write %d, who read frontend %v before goes to %s, was %s, is to be %s", f.Writes, k, got, old[k], planned[k])
		}
		held.ServiceStates = before.ServiceStates
		if got := look(&held, k); got != old[k] {
			t.Errorf("after write %d, who read the state of %v before goes to %s, was %s", f.Writes, k, got, old[k])
		}
	}
	for k := range before.SourceRanges {
		if !now.SourceRanges[k] {
			t.Errorf("after write %d, source range %v of service %d is gone", f.Writes, k.Prefix(), k.Index)
		}
	}
}

// plan plans a change on the fake, and gives the states before and after.
func (c change) plan(t testing.TB, f *Fake) (plan *Plan, before, after *State) {
	t.Helper()
	before = mustRead(t, f)
	p := NewPlanner(mustRead(t, f), c.own)
	wanted := map[uint32]bool{}
	for _, svc := range c.to {
		if err := p.Ensure(svc); err != nil {
			t.Fatal(err)
		}
		index, _, _ := p.Owner(svc)
		wanted[index] = true
	}
	if strings.HasPrefix(c.name, "removed:") {
		for _, index := range p.State().Indexes() {
			if !wanted[index] {
				p.Remove(index)
			}
		}
	}
	return p.Plan(), before, p.State()
}

func TestApplyPassesOnlyValidStates(t *testing.T) {
	for _, c := range changes() {
		t.Run(c.name, func(t *testing.T) {
			f := c.start(t)
			plan, before, after := c.plan(t, f)
			watch(t, f, before, after)
			carryOut(t, f, plan)
			if !sameTable(mustRead(t, f), after) {
				t.Errorf("the table is %+v, planned was %+v", mustRead(t, f), after)
			}
			checkWhole(t, mustRead(t, f))
		})
	}
}

// writesOf counts the single writes of a change.
func (c change) writesOf(t testing.TB) (apply, commit int) {
	f := c.start(t)
	plan, _, _ := c.plan(t, f)
	begin := f.Writes
	applied, err := Apply(f, plan)
	if err != nil {
		t.Fatal(err)
	}
	apply = f.Writes - begin
	if err := applied.Commit(); err != nil {
		t.Fatal(err)
	}
	return apply, f.Writes - begin - apply
}

func TestApplyThatFailsLeavesTheTableAsItWas(t *testing.T) {
	for _, c := range changes() {
		t.Run(c.name, func(t *testing.T) {
			writes, _ := c.writesOf(t)
			if writes < 2 {
				t.Fatalf("only %d writes: the row tests nothing", writes)
			}
			for i := range writes {
				f := c.start(t)
				plan, before, after := c.plan(t, f)
				watch(t, f, before, after)
				f.FailAfter = f.Writes + i
				_, err := Apply(f, plan)
				if err == nil || strings.Contains(err.Error(), "taking it back") {
					t.Errorf("write %d of %d fails: %v, want that failure alone", i, writes, err)
				}
				if now := mustRead(t, f); !sameTable(before, now) {
					t.Errorf("write %d of %d failed: the table was %+v, is %+v", i, writes, before, now)
				}
			}
		})
	}
}

func TestRollbackBringsTheTableBack(t *testing.T) {
	for _, c := range changes() {
		t.Run(c.name, func(t *testing.T) {
			f := c.start(t)
			plan, before, after := c.plan(t, f)
			watch(t, f, before, after)
			applied, err := Apply(f, plan)
			if err != nil {
				t.Fatal(err)
			}
			if err := applied.Rollback(); err != nil {
				t.Fatal(err)
			}
			if now := mustRead(t, f); !sameTable(before, now) {
				t.Errorf("the table was %+v, is %+v", before, now)
			}
		})
	}
}

type killed struct{}

// killAfter carries out do until the given number of writes is done; then nothing of it runs any more.
func killAfter(f *Fake, writes int, do func()) {
	defer func() {
		f.Observe = nil
		if r := recover(); r != nil && r != (killed{}) {
			panic(r)
		}
	}()
	watcher, begin := f.Observe, f.Writes
	f.Observe = func(s *State) {
		watcher(s)
		if f.Writes-begin == writes {
			panic(killed{})
		}
	}
	do()
}

func TestPlannerCompletesWhatWasKilledAtAnyWrite(t *testing.T) {
	for _, c := range changes() {
		t.Run(c.name, func(t *testing.T) {
			apply, commit := c.writesOf(t)
			for i := range apply + commit {
				f := c.start(t)
				plan, before, after := c.plan(t, f)
				watch(t, f, before, after)
				killAfter(f, i+1, func() { carryOut(t, f, plan) })

				again, middle, end := c.plan(t, f)
				watch(t, f, middle, end)
				carryOut(t, f, again)
				s := mustRead(t, f)
				checkWhole(t, s)
				for _, k := range asked(after) {
					if got, want := verdict(s, k), verdict(after, k); got != want {
						t.Errorf("killed after write %d: %v goes to %s in the end, want %s", i+1, k, got, want)
					}
				}
				if third, _, _ := c.plan(t, f); !third.Empty() {
					t.Errorf("killed after write %d: the third run plans %+v", i+1, third)
				}
			}
		})
	}
}

// Killed while it takes back a plan that failed.
func TestPlannerCompletesWhatWasKilledDuringRollback(t *testing.T) {
	for _, c := range changes() {
		t.Run(c.name, func(t *testing.T) {
			for i := 1; ; i++ {
				f := c.start(t)
				plan, before, after := c.plan(t, f)
				watch(t, f, before, after)
				applied, err := Apply(f, plan)
				if err != nil {
					t.Fatal(err)
				}
				done := false
				killAfter(f, i, func() { done = applied.Rollback() == nil })
				again, _, _ := c.plan(t, f)
				carryOut(t, f, again)
				checkWhole(t, mustRead(t, f))
				for _, k := range asked(after) {
					if got, want := verdict(mustRead(t, f), k), verdict(after, k); got != want {
						t.Errorf("killed at write %d of the way back: %v goes to %s, want %s", i, k, got, want)
					}
				}
				if done {
					return
				}
			}
		})
	}
}

func TestApplyToAFullTable(t *testing.T) {
	for _, tc := range []struct {
		name  string
		limit func(f *Fake, s *State)
	}{
		{"no room for backends", func(f *Fake, s *State) { f.MaxBackends = f.count() + 1 }},
		{"no room for frontends", func(f *Fake, s *State) { f.MaxFrontends = len(s.Frontends) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := NewFake(2048)
			ensure(t, f, InitIndexes, kubernetes("192.0.2.1:1", "192.0.2.2:2"))
			before := mustRead(t, f)
			tc.limit(f, before)
			plan := planBlindly(t, f, InitIndexes, twoPorts(kubernetes("192.0.2.3:3", "192.0.2.4:4")))
			if _, err := Apply(f, plan); !errors.Is(err, ErrFull) {
				t.Errorf("got %v, want ErrFull", err)
			}
			if now := mustRead(t, f); !sameTable(before, now) {
				t.Errorf("the table was %+v, is %+v", before, now)
			}
		})
	}
}

// A failure of the way back is told, with the failure that it was for.
func TestApplyReportsAFailedRollback(t *testing.T) {
	f := NewFake(2048)
	plan := planFor(t, f, InitIndexes, kubernetes("192.0.2.1:1"))
	broken := &brokenStore{Store: f}
	_, err := Apply(broken, plan)
	if err == nil || !strings.Contains(err.Error(), "frontends break") || !strings.Contains(err.Error(), "taking it back: ") || !strings.Contains(err.Error(), "sets stay") {
		t.Errorf("got %v, want both failures", err)
	}
}

type brokenStore struct{ Store }

func (*brokenStore) PutFrontends([]bpf.FrontendKey, []bpf.Frontend) error {
	return fmt.Errorf("frontends break")
}
func (*brokenStore) DeleteBackends([]bpf.BackendKey) error { return fmt.Errorf("sets stay") }
