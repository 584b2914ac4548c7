package natinit

import (
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/test/lab"
)

func mapID(t testing.TB, pin string) ebpf.MapID {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(pin, nil)
	must(t, err)
	defer m.Close()
	info, err := m.Info()
	must(t, err)
	id, _ := info.ID()
	return id
}

// A new map in the place of a lost pin would be seeded while the programs that run still read the old one.
func TestALostMapPinIsTakenUpFromTheProgramsThatUseIt(t *testing.T) {
	for _, rung := range []struct {
		name     string
		features bpf.Features
	}{
		{"links", allFeatures()},
		{"prog_attach", without(func(f *bpf.Features) { f.Link = false })},
	} {
		for _, name := range []bpf.MapName{bpf.MapBackend, bpf.MapFrontend, bpf.MapService, bpf.MapSockRevNat} {
			t.Run(rung.name+"/"+string(name), func(t *testing.T) {
				lab.VerifyNoLeaks(t)
				n := newNode(t)
				b := bpf.Balancer{UDP: true}
				n.up(t, rung.features, b, services(0))
				before := mapID(t, n.pins.Map(name))
				programs := attachedTo(t, n.cgroup)
				for _, pin := range n.pins.MapPins(name) {
					must(t, os.Remove(pin))
				}
				n.up(t, rung.features, b, services(1))
				if after := mapID(t, n.pins.Map(name)); after != before {
					t.Errorf("the pin leads to map %d, the programs use %d", after, before)
				}
				for hook, ids := range attachedTo(t, n.cgroup) {
					if len(ids) != 1 || ids[0] != programs[hook][0] {
						t.Errorf("%s: programs %v, were %v", hook, ids, programs[hook])
					}
				}
			})
		}
	}
}

func TestPruneRemovesWhatIsNotWanted(t *testing.T) {
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
	if again.Written || len(again.Services) != 1 {
		t.Errorf("the second seed wrote (%v) and reports %+v", again.Written, again.Services)
	}
}
