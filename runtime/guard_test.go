package runtime

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
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/kernel"
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

func labConfig(l *lab.Lab, log io.Writer) *Config {
	return &Config{
		Log: slog.New(slog.NewTextHandler(log, nil)), BPFFS: l.BPFFS, Cgroup: l.Cgroup, Proc: "/proc", RunDir: l.RunDir, StateDir: l.StateDir,
		Scope: natinit.ScopeAll, UDP: true, IgnoreKernelVersion: true,
	}
}

// guarded is a dataplane that is looked after.
func guarded(t *testing.T, forbid ...string) (l *lab.Lab, d *dataplane) {
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
	go func() { defer close(done); d.guard(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := d.close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return l, d
}

// whole reports whether everything is as a runtime wants it: attached, pinned, and what is pinned in use.
func (d *dataplane) whole() error {
	if err := errors.Join(d.attachedNow(), d.fault()); err != nil {
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

func awaitWhole(t *testing.T, d *dataplane) {
	t.Helper()
	var last error
	deadline := time.Now().Add(time.Minute)
	for ; time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if last = d.whole(); last == nil {
			return
		}
	}
	t.Fatalf("not repaired: %v", last)
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
		damage func(*testing.T, *lab.Lab, *dataplane)
		gap    bool // the kernel has no handle that would keep programs attached
		links  bool // the damage is to links
	}{
		"the bpffs unmounted": {damage: func(t *testing.T, l *lab.Lab, _ *dataplane) {
			if err := unix.Unmount(l.BPFFS, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		}},
		"the bpffs unmounted, without links": {forbid: byProg, damage: func(t *testing.T, l *lab.Lab, _ *dataplane) {
			if err := unix.Unmount(l.BPFFS, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		}},
		"every pin of a map removed":  {damage: func(t *testing.T, _ *lab.Lab, d *dataplane) { removeAll(t, d.pins.Maps()) }},
		"every pin of a link removed": {links: true, damage: func(t *testing.T, _ *lab.Lab, d *dataplane) { removeAll(t, d.pins.Links()) }},
		"every pin of a program removed": {forbid: byProg, damage: func(t *testing.T, _ *lab.Lab, d *dataplane) {
			removeAll(t, d.pins.Progs())
		}},
		"the whole directory removed": {damage: func(t *testing.T, _ *lab.Lab, d *dataplane) {
			if err := os.RemoveAll(d.pins.Dir); err != nil {
				t.Fatal(err)
			}
		}},
		"the pins of two maps exchanged for others": {damage: func(t *testing.T, l *lab.Lab, d *dataplane) {
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
		"programs detached": {gap: true, links: true, damage: func(t *testing.T, _ *lab.Lab, d *dataplane) {
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
		"programs detached that have no links": {forbid: byProg, gap: true, damage: func(t *testing.T, l *lab.Lab, d *dataplane) {
			if err := natinit.Remove(attach.Config{Pins: d.pins, Target: attach.Cgroup{Path: l.Cgroup}}); err != nil && !errors.Is(err, bpf.ErrForeign) {
				t.Fatal(err)
			}
		}},
		"the cgroup made anew": {gap: true, damage: func(t *testing.T, l *lab.Lab, _ *dataplane) {
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
					if err := d.attachedNow(); err != nil && !tc.gap {
						lost <- err
						return
					}
				}
			}()
			tc.damage(t, l, d)
			if tc.gap {
				lab.Await(t, "it is said, or repaired already", func() bool { return d.attachedNow() != nil || d.whole() == nil })
			}
			lab.Await(t, "something is repaired", func() bool { return !d.changed() })
			awaitWhole(t, d)
			cancel()
			if err := <-lost; err != nil {
				t.Errorf("meanwhile: %v", err)
			}
			if backends, err := d.apiBackends([]netip.AddrPort{guardVIP}); err != nil || len(backends) != 1 || backends[0] != guardBackend {
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
	for name, damage := range map[string]func(*testing.T, *lab.Lab, *dataplane) (undo func()){
		"a directory in the place of a map": func(t *testing.T, _ *lab.Lab, d *dataplane) func() {
			pin := d.pins.Map(bpf.MapService)
			if err := errors.Join(os.Remove(pin), os.Mkdir(pin, 0o700)); err != nil {
				t.Fatal(err)
			}
			return func() { os.Remove(pin) }
		},
		"a second bpffs over the first": func(t *testing.T, l *lab.Lab, _ *dataplane) func() {
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
			lab.Await(t, "it is said", func() bool { return d.fault() != nil })
			if err := d.attachedNow(); err != nil {
				t.Error(err)
			}
			release, err := d.lock(t.Context())
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
func TestAttachedNowTellsTheTruth(t *testing.T) {
	l, d := guarded(t)
	awaitWhole(t, d)
	if err := os.Remove(l.Cgroup); err != nil {
		t.Fatal(err)
	}
	lab.Await(t, "it cannot be repaired", func() bool { return d.fault() != nil })
	if d.attachedNow() == nil {
		t.Error("attached, to a cgroup that is gone")
	}
	if err := os.Mkdir(l.Cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	awaitWhole(t, d)
}

// An init stage of another version or with other settings exchanges the programs, and holds the lock until it has proven
// them: what is attached serves all the time.
func TestAttachedNowWhileProgramsAreExchanged(t *testing.T) {
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
	if err := errors.Join(a.Commit(), a.Close(), d.attachedNow(), lock.Release()); err != nil {
		t.Error(err)
	}
	awaitWhole(t, d)
}

// snapshot is everything below the lab's directories, with what each file says.
func snapshot(t *testing.T, l *lab.Lab) string {
	t.Helper()
	var out strings.Builder
	for _, dir := range []string{l.BPFFS, l.RunDir, l.StateDir} {
		err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			fmt.Fprintln(&out, path, st.Mode, st.Ino, st.Mtim)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

func TestRunThatCannotStartChangesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte("apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: 'https://10.96.0.1:443'}}]\n"+
		"contexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {token: t}}]\ncurrent-context: a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		damage func(*testing.T, *lab.Lab, *Config)
		want   string
	}{
		"no table":                  {func(t *testing.T, _ *lab.Lab, c *Config) {}, "run `firsthop init` first"},
		"no bpffs":                  {func(t *testing.T, l *lab.Lab, c *Config) { c.BPFFS = l.StateDir }, "bpffs"},
		"no cgroup":                 {func(t *testing.T, l *lab.Lab, c *Config) { seedLab(t, l); c.Cgroup = "/nonexistent" }, "/nonexistent"},
		"no kubeconfig":             {func(t *testing.T, l *lab.Lab, c *Config) { seedLab(t, l); c.Kubeconfig = "/nonexistent" }, "/nonexistent"},
		"a kubeconfig that is none": {func(t *testing.T, l *lab.Lab, c *Config) { seedLab(t, l); c.Kubeconfig = "/proc/self/exe" }, "/proc/self/exe"},
		"something else at a map's place": {func(t *testing.T, l *lab.Lab, c *Config) {
			seedLab(t, l)
			pin := bpf.PinsBelow(l.BPFFS).Map(bpf.MapSockAffinity)
			if err := errors.Join(os.Remove(pin), os.Mkdir(pin, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, bpf.ErrForeign.Error()},
		"another runtime, with other directories": {func(t *testing.T, l *lab.Lab, c *Config) {
			seedLab(t, l)
			hold, err := instance.HoldTable(bpf.PinsBelow(l.BPFFS).Dir)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { hold.Release() })
		}, fmt.Sprintf("pid %d", os.Getpid())},
	} {
		t.Run(name, func(t *testing.T) {
			l := lab.New(t)
			cfg := labConfig(l, io.Discard)
			cfg.Kubeconfig = kubeconfig
			cfg.RunDir = filepath.Join(l.RunDir, "new") // that of a run that never was
			cfg.NodeName = "n1"
			tc.damage(t, l, cfg)
			before := snapshot(t, l)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if err := Run(ctx, *cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if after := snapshot(t, l); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
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
				if _, err := d.grow(t.Context(), writer.ShortFrontends); err != nil {
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
		if _, err := d.grow(t.Context(), part); err != nil {
			t.Fatal(err)
		}
		if got := size(); got != want {
			t.Errorf("part %b: %v, want %v", part, got, want)
		}
	}
	awaitWhole(t, d)
	want := size()
	for want[3] < bpf.MaxEntries {
		if _, err := d.grow(t.Context(), writer.ShortRanges); err != nil {
			t.Fatal(err)
		}
		want[3] = min(want[3]*2, bpf.MaxEntries)
	}
	if _, err := d.grow(t.Context(), writer.ShortRanges); err == nil || !strings.Contains(err.Error(), "source ranges") {
		t.Errorf("beyond the maximum: %v", err)
	}
	if got := size(); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}
