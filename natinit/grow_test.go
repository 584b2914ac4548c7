package natinit

import (
	"testing"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/test/clients"
)

// open is the table and the attachment as a runtime has them.
func (n *node) open(t testing.TB, f bpf.Features) AttachConfig {
	t.Helper()
	m, err := bpf.OpenMaps(n.pins, false)
	must(t, err)
	return n.attachConfig(m, f, bpf.Balancer{UDP: true})
}

func sizesOf(m *bpf.Maps) bpf.Sizes {
	return bpf.Sizes{Frontends: m.Map(bpf.MapFrontend).MaxEntries(), Services: m.Services(), Backends: m.Map(bpf.MapBackend).MaxEntries()}
}

func TestATableGrowsWhileItServes(t *testing.T) {
	for name, f := range map[string]bpf.Features{"with everything": allFeatures(), "on the floor": {}} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.up(t, f, bpf.Balancer{UDP: true}, services(0, 1, 2))
			p := goClient(t)
			done := make(chan []clients.Exchange)
			for _, w := range waysToVIP() {
				go func() { done <- p.Run(t, n.l, w.mode, w.vip, "hello", append(w.options(), clients.Count(400))...) }()
			}
			cfg := n.open(t, f)
			for range 3 {
				sizes := sizesOf(cfg.Maps)
				want := bpf.Sizes{Frontends: sizes.Frontends * 2, Services: sizes.Services * 2, Backends: sizes.Backends * 2}
				grown, err := Grow(cfg, want)
				must(t, err)
				cfg.Maps.Close()
				if got := sizesOf(grown); got != want {
					t.Errorf("grew to %+v, want %+v", got, want)
				}
				cfg.Maps = grown
				p := nat.NewPlanner(mustReadMaps(t, grown, f), nat.InitIndexes) // and goes on to be written to
				must(t, p.Ensure(services(0, 1)[0]))
				applied, err := nat.Apply(nat.NewKernel(grown, f), p.Plan())
				must(t, err)
				must(t, applied.Commit())
			}
			cfg.Maps.Close()
			for range waysToVIP() {
				for _, e := range <-done {
					if e.Error != "" || e.Server() == "" {
						t.Fatalf("an exchange failed: %+v", e)
					}
				}
			}
			// The next init finds all as it should be.
			r, err := n.begin(f, bpf.Balancer{UDP: true}, services(0, 1, 2))
			must(t, err)
			if r.attached.Changed() {
				t.Errorf("attached anew: %+v", r.attached.Hooks)
			}
			r.commit(t)
			n.checkWay(t, f, p, waysToVIP()[0])
		})
	}
}

func mustReadMaps(t testing.TB, m *bpf.Maps, f bpf.Features) *nat.State {
	t.Helper()
	s, err := nat.NewKernel(m, f).Read()
	must(t, err)
	return s
}

// Killed after the programs were exchanged and before the pins were: whoever comes next brings both together.
func TestAKilledGrowthIsMended(t *testing.T) {
	f := allFeatures()
	n := newNode(t)
	n.up(t, f, bpf.Balancer{UDP: true}, services(0))
	cfg := n.open(t, f)
	defer cfg.Maps.Close()
	grown, err := cfg.Maps.Grow(bpf.Sizes{Frontends: 1024, Services: 4096, Backends: 1024})
	must(t, err)
	must(t, nat.Fill(nat.NewKernel(grown, f), mustReadMaps(t, cfg.Maps, f)))
	cfg.Maps = grown
	a, err := Attach(cfg)
	must(t, err)
	p := goClient(t)
	n.checkWay(t, f, p, waysToVIP()[0])
	must(t, a.Close())
	must(t, grown.Close())

	n.up(t, f, bpf.Balancer{UDP: true}, services(1))
	for _, w := range waysToVIP() {
		if got := servers(t, p, n.l, w, 2); len(got) != 1 || !got["backend-1"] {
			t.Errorf("%s: answered by %v: the programs don't see what is written", w.name, got)
		}
	}
}
