package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/runtime/dataplane"
	"github.com/firsthop/firsthop/test/lab"
)

// A service manager kills who takes long to end: the end waits for its parts, but not for one that sleeps.
func TestAwaitIsBounded(t *testing.T) {
	gate := make(chan struct{})
	defer close(gate)
	for _, tc := range []struct {
		name        string
		limit       time.Duration
		wait        func()
		least, most time.Duration
	}{
		{"all have ended", time.Hour, func() {}, 0, 30 * time.Second},
		{"one ends a little later", time.Hour, func() { time.Sleep(50 * time.Millisecond) }, 50 * time.Millisecond, 30 * time.Second},
		{"one never ends", 50 * time.Millisecond, func() { <-gate }, 50 * time.Millisecond, 30 * time.Second},
	} {
		began := time.Now()
		ended := make(chan struct{})
		go func() { await(tc.limit, tc.wait); close(ended) }()
		select {
		case <-ended:
		case <-time.After(tc.most):
			t.Fatalf("%s: no end within %s", tc.name, tc.most)
		}
		if took := time.Since(began); took < tc.least {
			t.Errorf("%s: waited for %s only", tc.name, took)
		}
	}
	if endTime > 5*time.Second { // TimeoutStopSec of a unit, or of a pod with a short grace, leaves room for the rest
		t.Errorf("the end may take %s", endTime)
	}
}

// TestMain leaves nothing behind.
func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

// seedLab makes a small table, as an init stage does.
func seedLab(t testing.TB, l *lab.Lab, services ...nat.Service) {
	t.Helper()
	seeded, err := natinit.Seed(natinit.SeedConfig{
		Pins: bpf.PinsBelow(l.BPFFS), Features: bpf.Features(lab.KernelFeatures()),
		Sizes: bpf.Sizes{Frontends: 64, Services: 2048, Backends: 64, SourceRanges: 64}, Services: services,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(seeded.Commit(), seeded.Maps.Close()); err != nil {
		t.Fatal(err)
	}
}

// seeded is a Service of the API for a table that is seeded.
func seeded(name, vip, backend string) nat.Service {
	front := netip.MustParseAddrPort(vip)
	return nat.Service{
		Name: name, Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(front, bpf.TCP)}, VIPs: []netip.Addr{front.Addr()},
		Backends: []netip.AddrPort{netip.MustParseAddrPort(backend)},
	}
}

func labConfig(l *lab.Lab) *Config {
	return &Config{
		Log: slog.New(slog.DiscardHandler), Places: mounts.Places{Given: mounts.Dirs{BPFFS: l.BPFFS, Cgroup: l.Cgroup}, Proc: "/proc", RunDir: l.RunDir, StateDir: l.StateDir},
		Scope: natinit.ScopeAll, UDP: true, IgnoreKernelVersion: true,
	}
}

// openDataplane takes over what an init stage has made.
func openDataplane(t testing.TB, cfg *Config) *dataplane.Dataplane {
	t.Helper()
	d, err := dataplane.Find(cfg.dataplane())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.TakeOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

func seedAPI(t testing.TB, l *lab.Lab) {
	seedLab(t, l, seeded("api", "10.96.0.1:443", "192.0.2.1:6443"))
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
		"no bpffs":                  {func(t *testing.T, l *lab.Lab, c *Config) { c.Given.BPFFS = l.StateDir }, "bpffs"},
		"no cgroup":                 {func(t *testing.T, l *lab.Lab, c *Config) { seedAPI(t, l); c.Given.Cgroup = "/nonexistent" }, "/nonexistent"},
		"no kubeconfig":             {func(t *testing.T, l *lab.Lab, c *Config) { seedAPI(t, l); c.Kubeconfig = "/nonexistent" }, "/nonexistent"},
		"a kubeconfig that is none": {func(t *testing.T, l *lab.Lab, c *Config) { seedAPI(t, l); c.Kubeconfig = "/proc/self/exe" }, "/proc/self/exe"},
		"something else at a map's place": {func(t *testing.T, l *lab.Lab, c *Config) {
			seedAPI(t, l)
			pin := bpf.PinsBelow(l.BPFFS).Map(bpf.MapSockAffinity)
			if err := errors.Join(os.Remove(pin), os.Mkdir(pin, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, bpf.ErrForeign.Error()},
		"another runtime, with other directories": {func(t *testing.T, l *lab.Lab, c *Config) {
			seedAPI(t, l)
			hold, err := instance.HoldTable(bpf.PinsBelow(l.BPFFS).Dir)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { hold.Release() })
		}, fmt.Sprintf("pid %d", os.Getpid())},
	} {
		t.Run(name, func(t *testing.T) {
			l := lab.New(t)
			cfg := labConfig(l)
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
