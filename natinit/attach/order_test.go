package attach

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"

	"github.com/firsthop/firsthop/test/lab"
)

func placeOf(t testing.TB, cfg Config, hook string) Place {
	t.Helper()
	places, err := Order(cfg)
	must(t, err)
	i := slices.IndexFunc(places, func(p Place) bool { return p.Hook == hook })
	if i < 0 || len(places) != 2 {
		t.Fatalf("places: %+v", places)
	}
	return places[i]
}

func TestOrderNamesWhoIsBefore(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		out, in := testHooks[0], testHooks[1]
		if p := placeOf(t, cfg, in.Name); p.Attached || p.First || len(p.Ahead) > 0 {
			t.Errorf("nothing is attached: %+v", p)
		}
		must(t, attach(t, cfg).Commit())
		for _, h := range testHooks {
			if p := placeOf(t, cfg, h.Name); !p.Attached || !p.First || len(p.Ahead) > 0 {
				t.Errorf("ours is alone: %+v", p)
			}
		}
		// The same priority as ours: what is added last comes first.
		other := attachForeign(t, cfg, in, filterPriority, 7)
		p := placeOf(t, cfg, in.Name)
		if !p.Attached || p.First || len(p.Ahead) != 1 {
			t.Fatalf("a foreign program is before ours: %+v", p)
		}
		a := p.Ahead[0]
		if a.Program != other.id || a.By != best(cfg.Target) || a.Fixed || !strings.Contains(a.What, `"foreign"`) || !strings.Contains(a.What, "held by pid") {
			t.Errorf("before ours is %+v", a)
		}
		if p := placeOf(t, cfg, out.Name); !p.First {
			t.Errorf("nothing came to the other hook: %+v", p)
		}
		other.detach(t)
		after := attachForeign(t, cfg, in, 5, 7)
		if p := placeOf(t, cfg, in.Name); p.First != (after.link == nil) {
			t.Errorf("a filter of a higher priority number is after ours, a link at the head before: %+v", p)
		}
		after.detach(t)
	})
}

// Each packet is translated once while ours is brought to the head; what was before it runs on, as it was.
func TestKeeperRestoresTheOrder(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		ours := newCounters(t, 1)
		ours.translates = true
		cfg.Programs = ours
		must(t, openTarget(t, cfg).ensureClsact()) // which loses packets
		must(t, attach(t, cfg).Commit())
		s := startStream(t)
		s.flows(t)
		in := testHooks[1]
		var k Keeper
		if r, err := k.Restore(cfg); err != nil || len(r.Hooks) > 0 || len(r.Found) != 2 {
			t.Errorf("nothing was to be done: %+v, %v", r, err)
		}
		var others []*foreign
		for i := range 3 {
			before := attached(t, cfg)
			others = append(others, attachForeign(t, cfg, in, filterPriority, uint32(7+i)))
			s.flows(t)
			r, err := k.Restore(cfg)
			must(t, err)
			if len(r.Hooks) != 1 || r.Hooks[0].Hook != in.Name || r.Hooks[0].Change != Changed || len(r.Found[1].Ahead) != 1 {
				t.Errorf("restored %+v", r)
			}
			ids := attachedTo(t, cfg, in)
			if len(ids) != i+2 || ids[0] != r.Hooks[0].Program || slices.Contains(before, ids[0]) {
				t.Errorf("attached %v after %v, want ours first, once", ids, before)
			}
			for j, o := range others {
				if ids[len(ids)-1-j] != o.id {
					t.Errorf("attached %v, want the foreign %d as they came", ids, o.id)
				}
			}
			if pins := pinned(t, cfg); len(pins) != 2 {
				t.Errorf("pinned: %v", pins)
			}
			again := attach(t, cfg)
			if again.Hooks[0].Change != Kept || again.Hooks[1].Change != Kept || again.Hooks[1].Program != ids[0] {
				t.Errorf("attached again: %+v", again.Hooks)
			}
			must(t, again.Commit())
			s.flows(t)
		}
		for _, o := range others {
			o.detach(t)
		}
		s.wantOnce(t, ours)
	})
}

// A restore that was killed has left a second one of ours, with or without its pin.
func TestKeeperIsCrashSafe(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		in := testHooks[1]
		former := attach(t, cfg)
		must(t, former.Commit())
		other := attachForeign(t, cfg, in, filterPriority, 7)
		for round := range 3 {
			a, err := attachFirst(cfg, map[string]bool{in.Name: true})
			must(t, err)
			if ids := attachedTo(t, cfg, in); round == 0 && !slices.Equal(ids, []ebpf.ProgramID{a.Hooks[1].Program, other.id, former.Hooks[1].Program}) {
				t.Errorf("before the commit %v are attached, want the new one, the foreign %d, the former %d", ids, other.id, former.Hooks[1].Program)
			}
			must(t, a.Close()) // no commit
		}
		var k Keeper
		if _, err := k.Restore(cfg); err != nil {
			t.Error(err)
		}
		a := attach(t, cfg)
		must(t, a.Commit())
		if ids := attachedTo(t, cfg, in); !slices.Equal(ids, []ebpf.ProgramID{a.Hooks[1].Program, other.id}) {
			t.Errorf("attached %v, want ours and the foreign %d", ids, other.id)
		}
		b, err := attachFirst(cfg, map[string]bool{in.Name: true})
		must(t, err)
		must(t, errors.Join(b.Rollback(), b.Close()))
		lab.Await(t, "the former are as they were", func() bool {
			return slices.Equal(attachedTo(t, cfg, in), []ebpf.ProgramID{a.Hooks[1].Program, other.id})
		})
		other.detach(t)
	})
}

// Another agent does the same: ours gives in, and says so.
func TestKeeperEndsAFight(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		in := testHooks[1]
		must(t, attach(t, cfg).Commit())
		now := time.Now()
		k := Keeper{Restores: 2, Interval: time.Minute, Now: func() time.Time { return now }}
		for round, allowed := range []bool{true, true, false, false, true, false} {
			if round == 3 {
				now = now.Add(59 * time.Second)
			}
			if round == 4 {
				now = now.Add(time.Second)
				k.Restores = 1
			}
			other := attachForeign(t, cfg, in, filterPriority, 7)
			r, err := k.Restore(cfg)
			if allowed && (err != nil || len(r.Hooks) != 1) {
				t.Errorf("round %d: %+v, %v", round, r, err)
			}
			if !allowed && (!errors.Is(err, ErrContested) || !strings.Contains(err.Error(), `"foreign"`) || len(r.Hooks) > 0) {
				t.Errorf("round %d: %+v, %v, want ErrContested", round, r, err)
			}
			if first := placeOf(t, cfg, in.Name).First; first != allowed {
				t.Errorf("round %d: ours is first: %t", round, first)
			}
			other.detach(t)
		}
		now = now.Add(time.Minute)
		k.allowed(Device{Index: 1 << 30})
		if len(k.done) != 1 {
			t.Errorf("what is long ago is kept: %v", k.done)
		}
	})
}

// tcx runs before all filters: where it is forbidden to us, nothing brings ours before it.
func TestKeeperLeavesWhatItCannotPrecede(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		lab.NeedsLinux(t, 6, 6, "tcx")
		d := cfg.Target.(Device)
		if d.TCX {
			return
		}
		in := testHooks[1]
		a := attach(t, cfg)
		must(t, a.Commit())
		other := newForeign(t)
		other.byTCX(t, d, in)
		k := Keeper{Restores: 1}
		for range 3 {
			r, err := k.Restore(cfg)
			if err != nil || len(r.Hooks) > 0 || len(r.Found[1].Ahead) != 1 || !r.Found[1].Ahead[0].Fixed || r.Found[1].Ahead[0].By != ByTCX {
				t.Errorf("%+v, %v", r, err)
			}
		}
		if ids := attachedTo(t, cfg, in); !slices.Equal(ids, []ebpf.ProgramID{other.id, a.Hooks[1].Program}) {
			t.Errorf("attached %v", ids)
		}
		other.detach(t)
	})
}

func TestOrderOfADeviceThatIsGone(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		cfg.Target = Device{Name: "absent", Index: 1 << 20, TCX: cfg.Target.(Device).TCX}
		if _, err := Order(cfg); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v, want os.ErrNotExist", err)
		}
		var k Keeper
		if r, err := k.Restore(cfg); err != nil || len(r.Found) > 0 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// A filter without direct action runs its own actions, and one of another protocol at our priority can't come after ours.
func TestOrderOfOtherFilters(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		d := cfg.Target.(Device)
		must(t, openTarget(t, cfg).ensureClsact())
		must(t, attach(t, cfg).Commit())
		in := testHooks[1]
		f := newForeign(t)
		err := f.byFilter(d, in, filterPriority, 7, unix.ETH_P_IP)
		if d.TCX != (err == nil) {
			t.Errorf("a filter of another protocol at priority 1: %v", err)
		}
		if err != nil {
			f.filter = nil
		}
		if p := placeOf(t, cfg, in.Name); !p.First {
			t.Errorf("ours is first: %+v", p)
		}
		f.detach(t)
		// No priority given: the kernel chooses one from the end.
		f = newForeign(t)
		must(t, f.byFilter(d, in, 0, 7, unix.ETH_P_ALL))
		if p := placeOf(t, cfg, in.Name); !p.First {
			t.Errorf("ours is first: %+v", p)
		}
		for _, other := range openTarget(t, cfg).mustFilters(t, in) {
			if other.program == f.id {
				f.filter.Priority = other.priority
			}
		}
		f.detach(t)
	})
}

func (d *openDevice) mustFilters(t testing.TB, h bpf.Hook) []*filter {
	t.Helper()
	found, err := d.filters(h)
	must(t, err)
	return found
}
