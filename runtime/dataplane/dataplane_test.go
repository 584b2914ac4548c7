package dataplane

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/runtime/writer"
	"github.com/firsthop/firsthop/test/lab"
)

// TestMain leaves nothing behind.
func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

// openMaps are the BPF maps that this process has open, by their id.
func openMaps(t *testing.T) map[string]bool {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	maps := map[string]bool{}
	for _, fd := range fds {
		info, err := os.ReadFile(fd)
		if err != nil {
			continue // that of the directory itself
		}
		if _, id, ok := strings.Cut(string(info), "map_id:\t"); ok {
			id, _, _ = strings.Cut(id, "\n")
			maps[id] = true
		}
	}
	return maps
}

// openDataplane takes over what an init stage has made.
func openDataplane(t testing.TB, cfg Config) *Dataplane {
	t.Helper()
	d, err := Find(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.TakeOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

// A table that grows for a day must not hold on to all that it has grown out of: maps are memory.
func TestGrowClosesFormerMaps(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l := lab.New(t)
	vip, backend := netip.MustParseAddrPort("10.96.0.1:443"), netip.MustParseAddrPort("192.0.2.1:6443")
	seeded, err := natinit.Seed(natinit.SeedConfig{
		Pins: bpf.PinsBelow(l.BPFFS), Features: bpf.Features(lab.KernelFeatures()),
		Sizes: bpf.Sizes{Frontends: 64, Services: 2048, Backends: 64},
		Services: []nat.Service{{
			Name: "api", Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(vip, bpf.TCP)}, VIPs: []netip.Addr{vip.Addr()},
			Backends: []netip.AddrPort{backend},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := seeded.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := seeded.Maps.Close(); err != nil {
		t.Fatal(err)
	}
	before := len(openMaps(t))
	d := openDataplane(t, Config{
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Places: mounts.Places{Given: mounts.Dirs{BPFFS: l.BPFFS, Cgroup: l.Cgroup}, Proc: "/proc", RunDir: l.RunDir}, Journal: journalOf(l.RunDir),
		Scope: natinit.ScopeAll, UDP: true, IgnoreKernelVersion: true,
	})
	var counts []int
	for range 5 {
		if _, err := d.Grow(t.Context(), writer.ShortFrontends|writer.ShortServices|writer.ShortBackends|writer.ShortRanges); err != nil {
			t.Fatal(err)
		}
		counts = append(counts, len(openMaps(t))-before)
	}
	if got := d.maps.Map(bpf.MapFrontend).MaxEntries(); got != 64<<5 {
		t.Errorf("grew to %d frontends, want %d", got, 64<<5)
	}
	if backends, err := d.APIBackends([]netip.AddrPort{vip}); err != nil || len(backends) != 1 || backends[0] != backend {
		t.Errorf("the table leads to %v, %v", backends, err)
	}
	// The last but one is open: a write may be on its way to it.
	for i := 2; i < len(counts); i++ {
		if counts[i] > counts[1] {
			t.Errorf("open maps after each growth: %v", counts)
			break
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if after := len(openMaps(t)); after != before {
		t.Errorf("%d maps are open after the end, %d were before", after, before)
	}
}

// TestGrowSocketsDoublesWhatIsAskedFor up to the bounds, and keeps what the former version's maps had.
func TestGrowSocketsDoublesWhatIsAskedFor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l := lab.New(t)
	seeded, err := natinit.Seed(natinit.SeedConfig{
		Pins: bpf.PinsBelow(l.BPFFS), Features: bpf.Features(lab.KernelFeatures()),
		Sizes: bpf.Sizes{Frontends: 64, Services: 2048, Backends: 64, UDPSockets: 1024, UDPSessions: bpf.MaxUDPSockets, TCPSockets: 1024},
	})
	if err != nil {
		t.Fatal(err)
	}
	old := bpf.UDPRevNatKey{Cookie: 1, Port: bpf.PortOf(1)}
	if err := seeded.Maps.Map(bpf.MapUDPRevNat).Put(old, bpf.UDPRevNat{Index: 7}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(seeded.Commit(), seeded.Close()); err != nil {
		t.Fatal(err)
	}
	d := openDataplane(t, Config{
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Places: mounts.Places{Given: mounts.Dirs{BPFFS: l.BPFFS, Cgroup: l.Cgroup}, Proc: "/proc", RunDir: l.RunDir}, Journal: journalOf(l.RunDir),
		Scope: natinit.ScopeAll, UDP: true, IgnoreKernelVersion: true,
	})
	defer d.Close()
	for i := range uint64(700) {
		if err := d.Maps().Map(bpf.MapUDPSockRevNat).Put(bpf.UDPRevNatKey{Cookie: 100 + i}, bpf.UDPRevNat{Index: uint32(i)}); err != nil {
			t.Fatal(err)
		}
		if err := d.Maps().Map(bpf.MapSockRevNat).Put(uint32(100+i), bpf.SockRevNat{Cookie: 4*1024 + 100 + i}); err != nil {
			t.Fatal(err)
		}
	}
	sizes := func() [3]uint32 {
		m := d.Maps()
		return [3]uint32{m.Map(bpf.MapUDPSockRevNat).MaxEntries(), m.Map(bpf.MapUDPSockAffinity).MaxEntries(), m.Map(bpf.MapSockRevNat).MaxEntries()}
	}
	for _, step := range []struct {
		full []bpf.MapName
		want [3]uint32
	}{
		{nil, [3]uint32{1024, bpf.MaxUDPSockets, 1024}},
		{[]bpf.MapName{bpf.MapUDPSockRevNat}, [3]uint32{2048, bpf.MaxUDPSockets, 1024}},
		{[]bpf.MapName{bpf.MapUDPSockAffinity}, [3]uint32{2048, bpf.MaxUDPSockets, 1024}},
		{[]bpf.MapName{bpf.MapSockRevNat, bpf.MapUDPSockRevNat}, [3]uint32{4096, bpf.MaxUDPSockets, 2048}},
	} {
		if _, err := d.GrowSockets(t.Context(), step.full...); err != nil {
			t.Fatal(err)
		}
		if got := sizes(); got != step.want {
			t.Errorf("after %v: %v, want %v", step.full, got, step.want)
		}
		if err := d.Attached(); err != nil {
			t.Error(err)
		}
	}
	d.limit = func() uint64 { return 64 << 20 } // a quarter of it is for 65,536 UDP sockets
	for range 8 {
		if _, err := d.GrowSockets(t.Context(), bpf.MapUDPSockRevNat, bpf.MapUDPSockAffinity); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := sizes(), [3]uint32{65536, bpf.MaxUDPSockets, 2048}; got != want {
		t.Errorf("within a limit of memory: %v, want %v", got, want)
	}
	m := d.Maps()
	var v bpf.UDPRevNat
	if err := m.Map(bpf.MapUDPSockRevNat).Lookup(old, &v); err != nil || v.Index != 7 {
		t.Errorf("what the former version noted is %+v, %v", v, err)
	}
	for i := range uint64(700) {
		var r bpf.SockRevNat
		cookie := 4*1024 + 100 + i
		err := errors.Join(m.Map(bpf.MapUDPSockRevNat).Lookup(bpf.UDPRevNatKey{Cookie: 100 + i}, &v), m.Map(bpf.MapSockRevNat).Lookup(uint32(cookie)&2047, &r))
		if err != nil || v.Index != uint32(i) || r.Cookie != cookie {
			t.Fatalf("socket %d: %+v, %+v, %v", i, v, r, err)
		}
	}
}
