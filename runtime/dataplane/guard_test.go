package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/runtime/writer"
	"github.com/firsthop/firsthop/test/lab"
)

var (
	guardVIP     = netip.MustParseAddrPort("10.96.0.1:443")
	guardBackend = netip.MustParseAddrPort("192.0.2.1:6443")
)

// seedLab makes a small table, as an init stage does.
func seedLab(t testing.TB, l *lab.Lab) {
	t.Helper()
	seeded, err := natinit.Seed(natinit.SeedConfig{
		Pins: bpf.PinsBelow(l.BPFFS), Features: bpf.Features(lab.KernelFeatures()),
		Sizes: bpf.Sizes{Frontends: 64, Services: 2048, Backends: 64, SourceRanges: 64},
		Services: []nat.Service{{
			Name: "api", Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(guardVIP, bpf.TCP)}, VIPs: []netip.Addr{guardVIP.Addr()},
			Backends: []netip.AddrPort{guardBackend},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(seeded.Commit(), seeded.Maps.Close()); err != nil {
		t.Fatal(err)
	}
}

func labConfig(l *lab.Lab, log io.Writer) Config {
	return Config{
		Log: slog.New(slog.NewTextHandler(log, nil)), Places: mounts.Places{Given: mounts.Dirs{BPFFS: l.BPFFS, Cgroup: l.Cgroup}, Proc: "/proc", RunDir: l.RunDir},
		Scope: natinit.ScopeAll, UDP: true, IgnoreKernelVersion: true, Journal: journalOf(l.RunDir),
	}
}

// journalOf is Config.Journal for a run directory.
func journalOf(runDir string) func(context.Context, func(*instance.Journal) error) error {
	return func(ctx context.Context, do func(*instance.Journal) error) (err error) {
		lock, _, err := instance.MakeAndAcquire(ctx, runDir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lock.Release()) }()
		j, err := instance.OpenJournal(runDir, false)
		if err != nil {
			return err
		}
		return do(j)
	}
}

// guarded is a dataplane that is looked after.
func guarded(t *testing.T, forbid ...string) (l *lab.Lab, d *Dataplane) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l = lab.New(t)
	seedLab(t, l)
	log := &lab.Log{}
	cfg := labConfig(l, log)
	cfg.Forbid = forbid
	d = openDataplane(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); d.Guard(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return l, d
}

// whole reports whether everything is as a runtime wants it: attached, pinned, and what is pinned in use.
func (d *Dataplane) whole() error {
	if err := errors.Join(d.Attached(), d.Fault()); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.hold.IsAt(d.pins.Dir) {
		return errors.New("the table's directory is another")
	}
	for _, name := range bpf.MapNames() {
		if same, err := bpf.PinLeadsTo(d.pins, name, d.maps.Map(name)); err != nil || !same {
			return fmt.Errorf("the pin of %s does not lead to the map in use: %w", name, err)
		}
	}
	_, hooks, _ := d.seen.hooks()
	for _, h := range hooks {
		if _, err := os.Lstat(h.PinOf(d.pins)); err != nil {
			return err
		}
	}
	return nil
}

func awaitWhole(t *testing.T, d *Dataplane) {
	t.Helper()
	lab.Await(t, "it is repaired", func() bool { return d.whole() == nil })
}

func removeAll(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGuardRepairsWhileProgramsStayAttached(t *testing.T) {
	byProg := []string{kernel.FeatureLink}
	for name, tc := range map[string]struct {
		forbid []string
		damage func(*testing.T, *lab.Lab, *Dataplane)
		gap    bool // the kernel has no handle that would keep programs attached
		links  bool // the damage is to links
	}{
		"the bpffs unmounted": {damage: func(t *testing.T, l *lab.Lab, _ *Dataplane) {
			if err := unix.Unmount(l.BPFFS, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		}},
		"the bpffs unmounted, without links": {forbid: byProg, damage: func(t *testing.T, l *lab.Lab, _ *Dataplane) {
			if err := unix.Unmount(l.BPFFS, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		}},
		"every pin of a map removed":  {damage: func(t *testing.T, _ *lab.Lab, d *Dataplane) { removeAll(t, d.pins.Maps()) }},
		"every pin of a link removed": {links: true, damage: func(t *testing.T, _ *lab.Lab, d *Dataplane) { removeAll(t, d.pins.Links()) }},
		"every pin of a program removed": {forbid: byProg, damage: func(t *testing.T, _ *lab.Lab, d *Dataplane) {
			removeAll(t, d.pins.Progs())
		}},
		"the whole directory removed": {damage: func(t *testing.T, _ *lab.Lab, d *Dataplane) {
			if err := os.RemoveAll(d.pins.Dir); err != nil {
				t.Fatal(err)
			}
		}},
		"the pins of two maps exchanged for others": {damage: func(t *testing.T, l *lab.Lab, d *Dataplane) {
			others := bpf.Pins{Dir: filepath.Join(l.BPFFS, "others")}
			m, err := bpf.EnsureMaps(others, bpf.Sizes{})
			if err != nil {
				t.Fatal(err)
			}
			m.Close()
			for _, name := range []bpf.MapName{bpf.MapFrontend, bpf.MapBackend} { // in one step: the guard is at work
				if err := os.Rename(others.Map(name), d.pins.Map(name)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.RemoveAll(others.Dir); err != nil {
				t.Fatal(err)
			}
		}},
		"programs detached": {gap: true, links: true, damage: func(t *testing.T, _ *lab.Lab, d *Dataplane) {
			for _, hook := range []string{"connect4", "recvmsg6"} {
				l, err := link.LoadPinnedLink(filepath.Join(d.pins.Links(), hook), nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := l.Detach(); err != nil {
					t.Fatal(err)
				}
				l.Close()
			}
		}},
		"programs detached that have no links": {forbid: byProg, gap: true, damage: func(t *testing.T, l *lab.Lab, d *Dataplane) {
			if err := natinit.Remove(attach.Config{Pins: d.pins, Target: attach.Cgroup{Path: l.Cgroup}}); err != nil && !errors.Is(err, bpf.ErrForeign) {
				t.Fatal(err)
			}
		}},
		"the cgroup made anew": {gap: true, damage: func(t *testing.T, l *lab.Lab, _ *Dataplane) {
			if err := errors.Join(os.Remove(l.Cgroup), os.Mkdir(l.Cgroup, 0o755)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.links {
				lab.NeedsLinux(t, 5, 8, "links")
			}
			l, d := guarded(t, tc.forbid...)
			awaitWhole(t, d)
			ctx, cancel := context.WithCancel(t.Context())
			lost := make(chan error, 1)
			go func() {
				defer close(lost)
				for ctx.Err() == nil {
					if err := d.Attached(); err != nil && !tc.gap {
						lost <- err
						return
					}
				}
			}()
			tc.damage(t, l, d)
			if tc.gap {
				lab.Await(t, "it is said, or repaired already", func() bool { return d.Attached() != nil || d.whole() == nil })
			}
			lab.Await(t, "something is repaired", func() bool { return !d.changed() })
			awaitWhole(t, d)
			cancel()
			if err := <-lost; err != nil {
				t.Errorf("meanwhile: %v", err)
			}
			if backends, err := d.APIBackends([]netip.AddrPort{guardVIP}); err != nil || len(backends) != 1 || backends[0] != guardBackend {
				t.Errorf("the table leads to %v, %v", backends, err)
			}
			// The next runtime finds all of it.
			again, err := natinit.OpenTable(d.pins)
			if err != nil {
				t.Fatal(err)
			}
			again.Close()
		})
	}
}

// What is not ours is left alone, and said; what is attached continues to serve.
func TestGuardLeavesWhatIsNotOurs(t *testing.T) {
	for name, damage := range map[string]func(*testing.T, *lab.Lab, *Dataplane) (undo func()){
		"a directory in the place of a map": func(t *testing.T, _ *lab.Lab, d *Dataplane) func() {
			pin := d.pins.Map(bpf.MapService)
			if err := errors.Join(os.Remove(pin), os.Mkdir(pin, 0o700)); err != nil {
				t.Fatal(err)
			}
			return func() { os.Remove(pin) }
		},
		"a second bpffs over the first": func(t *testing.T, l *lab.Lab, _ *Dataplane) func() {
			if err := unix.Mount("bpf", l.BPFFS, "bpf", 0, ""); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := unix.Unmount(l.BPFFS, 0); err != nil {
					t.Error(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, d := guarded(t)
			awaitWhole(t, d)
			undo := damage(t, l, d)
			lab.Await(t, "it is said", func() bool { return d.Fault() != nil })
			if err := d.Attached(); err != nil {
				t.Error(err)
			}
			release, err := d.Lock(t.Context())
			if err != nil {
				t.Errorf("the table cannot be written: %v", err)
			} else if err := release(); err != nil {
				t.Error(err)
			}
			undo()
			awaitWhole(t, d)
		})
	}
}

// A program that cannot be attached again is said to be detached.
func TestGuardOfACgroupThatIsGone(t *testing.T) {
	l, d := guarded(t)
	awaitWhole(t, d)
	if err := os.Remove(l.Cgroup); err != nil {
		t.Fatal(err)
	}
	lab.Await(t, "it cannot be repaired", func() bool { return d.Fault() != nil })
	if d.Attached() == nil {
		t.Error("attached, to a cgroup that is gone")
	}
	if err := os.Mkdir(l.Cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	awaitWhole(t, d)
}

// An init stage of another version or with other settings exchanges the programs, and holds the lock until it has proven
// them: what is attached serves all the time.
func TestGuardWhileProgramsAreExchanged(t *testing.T) {
	lab.NeedsLinux(t, 5, 7, "a setting that makes other programs at the same hooks")
	l, d := guarded(t)
	awaitWhole(t, d)
	lock, err := instance.Acquire(t.Context(), l.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	cfg := d.attachConfig(nil)
	other := d.programs()
	other.HostNetns++
	cfg.Programs = other
	a, err := attach.Attach(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(a.Hooks, func(h attach.Result) bool { return h.Change != attach.Kept }) {
		t.Error("nothing was exchanged")
	}
	if err := errors.Join(a.Commit(), a.Close(), d.Attached(), lock.Release()); err != nil {
		t.Error(err)
	}
	awaitWhole(t, d)
}

// TestTakeOverIsInTheJournal: what the runtime attached is found by an uninstall whose bpffs is gone.
func TestTakeOverIsInTheJournal(t *testing.T) {
	for name, forbid := range map[string][]string{"by links": nil, "without links": {kernel.FeatureLink}} {
		t.Run(name, func(t *testing.T) {
			l, d := guarded(t, forbid...)
			awaitWhole(t, d)
			for range 2 { // as taken over, and as exchanged for a larger table
				j, err := instance.OpenJournal(l.RunDir, false)
				if err != nil {
					t.Fatal(err)
				}
				_, hooks, _ := d.seen.hooks()
				for _, h := range hooks {
					found := false
					for _, e := range j.Entries() {
						found = found || e.Kind == instance.KindProgram && strings.HasPrefix(e.Target, fmt.Sprintf("%s id %d tag ", h.Hook, h.Program))
					}
					if !found {
						t.Errorf("%s: program %d is not in the journal", h.Hook, h.Program)
					}
				}
				if len(hooks) == 0 {
					t.Error("nothing is attached")
				}
				if _, err := d.Grow(t.Context(), writer.ShortFrontends); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestGrowGrowsWhatIsFullAlone, up to the maximum.
func TestGrowGrowsWhatIsFullAlone(t *testing.T) {
	_, d := guarded(t)
	size := func() [4]uint32 {
		d.mu.Lock()
		defer d.mu.Unlock()
		return [4]uint32{d.maps.Map(bpf.MapFrontend).MaxEntries(), d.maps.Map(bpf.MapBackend).MaxEntries(), d.maps.Services(), d.maps.Map(bpf.MapSourceRange).MaxEntries()}
	}
	for i, part := range []writer.Short{writer.ShortFrontends, writer.ShortBackends, writer.ShortServices, writer.ShortRanges} {
		want := size()
		want[i] *= 2
		if _, err := d.Grow(t.Context(), part); err != nil {
			t.Fatal(err)
		}
		if got := size(); got != want {
			t.Errorf("part %b: %v, want %v", part, got, want)
		}
	}
	awaitWhole(t, d)
	want := size()
	for want[3] < bpf.MaxEntries {
		if _, err := d.Grow(t.Context(), writer.ShortRanges); err != nil {
			t.Fatal(err)
		}
		want[3] = min(want[3]*2, bpf.MaxEntries)
	}
	if _, err := d.Grow(t.Context(), writer.ShortRanges); err == nil || !strings.Contains(err.Error(), "source ranges") {
		t.Errorf("beyond the maximum: %v", err)
	}
	if got := size(); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}
