package natinit

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/test/lab"
)

// byRung are the two ways to attach; on a kernel without links the one.
func byRung() map[attach.By]bpf.Features {
	return map[attach.By]bpf.Features{best(): allFeatures(), attach.ByProg: without(func(f *bpf.Features) { f.Link = false })}
}

func TestSeedTwiceChangesNothing(t *testing.T) {
	for by, f := range byRung() {
		t.Run(string(by), func(t *testing.T) {
			n := newNode(t)
			b := bpf.Balancer{UDP: true}
			n.up(t, f, b, services(0, 1, 2))
			n.wantOnce(t, f, b, by)
			// Traffic leaves its marks in maps that are no configuration.
			n.mustConnect(t)
			before := n.snapshot(t)
			for _, svcs := range [][]nat.Service{services(0, 1, 2), services(2, 0, 1)} {
				r := n.mustBegin(t, f, b, svcs)
				n.checkKept(t, r)
				r.commit(t)
				after := n.snapshot(t)
				before.wantSame(t, after)
				if before.Table.Generation != after.Table.Generation {
					t.Errorf("generation was %d, is %d", before.Table.Generation, after.Table.Generation)
				}
			}
			n.mustConnect(t)
		})
	}
}

func (n *node) checkKept(t *testing.T, r *run) {
	t.Helper()
	if r.changed() || len(r.seeded.Maps.Created) > 0 {
		t.Errorf("changed %v, created %v", r.changed(), r.seeded.Maps.Created)
	}
	for _, s := range r.seeded.Services {
		if s.Change != attach.Kept || s.Former != nil || s.Owner != OwnerInit {
			t.Errorf("%+v, want it kept", s)
		}
	}
	ids := attachedTo(t, n.cgroup)
	for _, h := range r.attached.Hooks {
		if h.Change != attach.Kept || !slices.Contains(ids[h.Hook], h.Program) {
			t.Errorf("%+v, want it kept, and program of %v", h, ids[h.Hook])
		}
	}
}

// mustConnect asks for every service once.
func (n *node) mustConnect(t testing.TB) {
	t.Helper()
	p := goClient(t)
	for _, w := range waysToVIP() {
		if e := p.Run(t, n.l, w.mode, w.vip, "hello", w.options()...)[0]; e.Error != "" {
			t.Errorf("%s: %+v", w.name, e)
		}
	}
}

func TestSeedSaysWhatItDid(t *testing.T) {
	n := newNode(t)
	b := bpf.Balancer{UDP: true}
	r := n.mustBegin(t, allFeatures(), b, services(0))
	for _, s := range r.seeded.Services {
		if s.Change != attach.Added || s.Index == 0 || len(s.Frontends) != 1 || len(s.Backends) != 1 || s.Former != nil {
			t.Errorf("first run: %+v", s)
		}
	}
	for i, h := range r.attached.Hooks {
		if h.Change != attach.Added || h.By != best() || h.Program == 0 || h.Hook != b.Hooks(allFeatures())[i].Name {
			t.Errorf("first run: %+v", h)
		}
	}
	r.commit(t)

	lab.NeedsLinux(t, 5, 7, "two features that make other programs")
	r = n.mustBegin(t, without(helpers), b, services(1, 0))
	for _, s := range r.seeded.Services {
		if s.Change != attach.Changed || len(s.Backends) != 2 || len(s.Former) != 1 {
			t.Errorf("other backends: %+v", s)
		}
	}
	for _, h := range r.attached.Hooks {
		if h.Change != attach.Changed {
			t.Errorf("other settings: %+v", h)
		}
	}
	r.commit(t)
}

func TestSeedMergesTheRuntimesService(t *testing.T) {
	n := newNode(t)
	maps, err := bpf.EnsureMaps(n.pins, bpf.Sizes{Frontends: 256, Services: 2048, Backends: 256})
	must(t, err)
	defer maps.Close()
	store := nat.NewKernel(maps, allFeatures())
	state, err := store.Read()
	must(t, err)
	p := nat.NewPlanner(state, nat.Indexes{First: 1024, Last: 1<<32 - 1})
	api := services(2)[0]
	must(t, p.Ensure(api))
	applied, err := nat.Apply(store, p.Plan())
	must(t, err)
	must(t, applied.Commit())

	given := services(0)[:1]
	both := []netip.AddrPort{given[0].Backends[0], api.Backends[0]}
	for _, tc := range []struct {
		name  string
		merge func(nat.Service, []netip.AddrPort) []netip.AddrPort
		want  []netip.AddrPort
	}{
		{"no merge leaves it", nil, api.Backends},
		{"an empty merge leaves it: never empty", func(nat.Service, []netip.AddrPort) []netip.AddrPort { return nil }, api.Backends},
		{"an equal merge leaves it", func(_ nat.Service, have []netip.AddrPort) []netip.AddrPort { return have }, api.Backends},
		{"a merge adds", func(s nat.Service, have []netip.AddrPort) []netip.AddrPort {
			return append(slices.Clone(s.Backends), have...)
		}, both},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := n.seedConfig(allFeatures(), given)
			cfg.Merge = tc.merge
			s, err := Seed(cfg)
			must(t, err)
			defer s.Close()
			got := s.Services[0]
			if got.Owner != OwnerRuntime || got.Index != 1024 || !sameSet(got.Backends, tc.want) {
				t.Errorf("got %+v, want backends %v of the runtime's service 1024", got, tc.want)
			}
			if changed := len(tc.want) == 2; (got.Change == attach.Changed) != changed {
				t.Errorf("%+v", got)
			}
			must(t, s.Rollback())
		})
	}
}

// PlanSeed is what --dry-run looks at: it says the same as Seed, and writes nothing.
func TestPlanSeedSaysWhatSeedDoes(t *testing.T) {
	n := newNode(t)
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, services(0))
	before := n.snapshot(t)
	cfg := n.seedConfig(allFeatures(), services(0, 1))
	plan, said, err := PlanSeed(before.Table, cfg)
	must(t, err)
	if plan.Empty() {
		t.Error("other backends, and nothing planned")
	}
	before.wantSame(t, n.snapshot(t))
	s, err := Seed(cfg)
	must(t, err)
	defer s.Close()
	for i, did := range s.Services {
		if did.Name != said[i].Name || did.Change != said[i].Change || did.Index != said[i].Index || !slices.Equal(did.Backends, said[i].Backends) {
			t.Errorf("said %+v, did %+v", said[i], did)
		}
	}
	must(t, s.Commit())
}

func TestSeedRefusesWhatItCannotHold(t *testing.T) {
	n := newNode(t)
	empty := services(0)
	empty[1].Backends = nil
	if _, err := Seed(n.seedConfig(allFeatures(), empty)); err == nil {
		t.Error("a service without backends was seeded")
	}
	many := services(0)
	for i := range 300 {
		many[0].Backends = append(many[0].Backends, netip.AddrPortFrom(backend4(0), uint16(1000+i)))
	}
	if _, err := Seed(n.seedConfig(allFeatures(), many)); !errors.Is(err, nat.ErrFull) {
		t.Errorf("303 backends in a map of 256: %v, want ErrFull", err)
	}
	if _, err := os.Lstat(n.pins.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", n.snapshot(t).Pins)
	}
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, services(0))
	before := n.snapshot(t)
	if _, err := Seed(n.seedConfig(allFeatures(), many)); !errors.Is(err, nat.ErrFull) {
		t.Errorf("303 backends in a map of 256: %v, want ErrFull", err)
	}
	before.wantSame(t, n.snapshot(t))
	n.mustConnect(t)
}

func TestSeedPrunesWhatIsNotWanted(t *testing.T) {
	n := newNode(t)
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, services(0))
	all := services(0)
	cfg := n.seedConfig(allFeatures(), all[:1])
	cfg.Prune = true
	s, err := Seed(cfg)
	must(t, err)
	defer s.Close()
	must(t, s.Commit())
	removed := 0
	for _, svc := range s.Services {
		if svc.Change == attach.Removed {
			removed++
		}
	}
	if want := len(all) - 1; removed != want {
		t.Errorf("%d services are reported as removed, want %d: %+v", removed, want, s.Services)
	}
	again, err := Seed(cfg)
	must(t, err)
	defer again.Close()
	must(t, again.Commit())
	if len(again.Services) != 1 || again.Services[0].Change != attach.Kept {
		t.Errorf("the second seed reports %+v", again.Services)
	}
}
