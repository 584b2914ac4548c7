package natinit

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
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
func TestSeedRepinsMapsFromPrograms(t *testing.T) {
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

// TestRemoveWithoutCapabilitiesChangesNoPin also where no map is there to refuse it: pins are files, which their owner can
// remove without any capability.
func TestRemoveWithoutCapabilitiesChangesNoPin(t *testing.T) {
	lab.VerifyNoLeaks(t)
	n := newNode(t)
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, services(0))
	must(t, os.RemoveAll(n.pins.Maps()))
	before, err := Pinned(n.pins)
	must(t, err)
	job := childJob{BPFFS: n.l.BPFFS, Cgroup: n.cgroup, Features: allFeatures(), Balancer: bpf.Balancer{UDP: true}, Remove: true}
	if out, err := runWithCapabilities(t, job, unix.CAP_DAC_OVERRIDE, unix.CAP_NET_ADMIN); err == nil || !strings.Contains(out, "CAP_SYS_ADMIN is missing") {
		t.Errorf("%v, %s", err, out)
	}
	if after, err := Pinned(n.pins); err != nil || !slices.Equal(before, after) {
		t.Errorf("pins were %q, are %q, %v", before, after, err)
	}
	must(t, n.remove())
}

func TestRemoveLeavesNothing(t *testing.T) {
	for by, f := range byRung() {
		t.Run(string(by), func(t *testing.T) {
			lab.VerifyNoLeaks(t)
			n := newNode(t)
			before := n.snapshot(t)
			must(t, n.remove()) // of nothing
			n.up(t, f, bpf.Balancer{UDP: true}, services(0))
			pinned, err := Pinned(n.pins)
			must(t, err)
			if len(pinned) != len((bpf.Balancer{UDP: true}).Hooks(f))+len(n.pins.AllMapPins()) {
				t.Errorf("pinned: %v", pinned)
			}
			must(t, n.remove())
			before.wantSame(t, n.snapshot(t))
			must(t, n.remove())
			must(t, Remove(attach.Config{Pins: n.pins, Target: attach.Cgroup{Path: filepath.Join(n.cgroup, "absent")}}))
		})
	}
}

// A table of another owner, or a map of another shape: what isn't ours stays.
func TestRemoveLeavesForeignMaps(t *testing.T) {
	n := newNode(t)
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, services(0))
	m, err := bpf.OpenMaps(n.pins, false)
	must(t, err)
	ours, err := m.Meta()
	must(t, err)
	must(t, m.Map(bpf.MapMeta).Put(uint32(0), bpf.Meta{ABI: 1, Owner: 0xbad}))
	before := n.snapshot(t)
	if err := n.remove(); !errors.Is(err, bpf.ErrForeign) {
		t.Errorf("another's table: %v, want ErrForeign", err)
	}
	before.wantSame(t, n.snapshot(t))
	must(t, m.Map(bpf.MapMeta).Put(uint32(0), ours))
	must(t, m.Close())

	must(t, os.Remove(n.pins.Map(bpf.MapSockAffinity)))
	must(t, loadForeign(t, hook("connect4")).count.Pin(n.pins.Map(bpf.MapSockAffinity)))
	if err := n.remove(); !errors.Is(err, bpf.ErrForeign) {
		t.Errorf("another's map: %v, want ErrForeign", err)
	}
	if now := n.snapshot(t); now.Pins[n.pins.Map(bpf.MapSockAffinity)] == "" {
		t.Error("another's map was unpinned")
	}
	must(t, os.Remove(n.pins.Map(bpf.MapSockAffinity)))
	must(t, n.remove())
}

// A link has an id before it can be opened by it: who lists links meanwhile is told to come again.
func TestRemoveListsLinksWhileOthersMakeSome(t *testing.T) {
	if !allFeatures().Link {
		lab.NeedsLinux(t, 5, 8, "listing of links")
	}
	n := newNode(t)
	m, err := bpf.EnsureMaps(n.pins, bpf.Sizes{Frontends: 64, Services: 2048, Backends: 64})
	must(t, err)
	defer m.Close()
	progs, err := bpf.LoadPrograms(m, bpf.Balancer{}, allFeatures())
	must(t, err)
	dir, err := os.Open(n.cgroup)
	must(t, err)
	defer dir.Close()
	connect4 := bpf.Hooks()[6]
	var stop atomic.Bool
	var makers sync.WaitGroup
	for range 3 {
		makers.Go(func() {
			for !stop.Load() {
				l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: progs[connect4.Name], Attach: connect4.Attach})
				if err == nil {
					l.Close()
				}
			}
		})
	}
	j := newJournal(t)
	must(t, j.Record(instance.KindProgram, "connect4 id 4000000000 tag 0", ""))
	cfg := n.removal(j, objects.Links{})
	for range 250 { // times eight hooks
		if err := CheckRemove(cfg); err != nil {
			t.Errorf("list links: %v", err)
			break
		}
	}
	stop.Store(true)
	makers.Wait()
	for _, p := range progs {
		p.Close()
	}
}

// The pins are gone with a bpffs, and the kernel is one of 5.3 to 5.7, on which a list of links ends in EINVAL.
func TestRemoveWithoutAListOfLinks(t *testing.T) {
	for by, f := range byRung() {
		t.Run(string(by), func(t *testing.T) {
			lab.VerifyNoLeaks(t)
			n, j := newNode(t), newJournal(t)
			n.upRecorded(t, f, j)
			held := n.holdLinks(t)
			must(t, os.RemoveAll(n.pins.Dir))
			before := attachedTo(t, n.cgroup)
			removal := n.removal(j, objects.Unlisted())
			must(t, CheckRemove(removal))
			if now := attachedTo(t, n.cgroup); len(now) != len(before) || len(now) == 0 {
				t.Errorf("a check changed what is attached: %v, then %v", before, now)
			}
			kept := newJournal(t)
			for _, e := range j.Entries() {
				must(t, kept.Record(e.Kind, e.Target, e.Former))
			}
			err := Remove(removal)
			if left := j.Entries(); len(left) > 0 {
				t.Errorf("left in the journal: %v", left)
			}
			if by == attach.ByProg {
				must(t, err)
				if left := attachedTo(t, n.cgroup); len(left) > 0 {
					t.Errorf("still attached: %v", left)
				}
				return
			}
			if !errors.Is(err, attach.ErrStillAttached) {
				t.Errorf("links that nobody can find: %v", err)
			}
			if _, err := (objects.Links{}).IDs(); errors.Is(err, objects.ErrNotSupported) {
				for _, l := range held { // this kernel can't either
					must(t, l.Close())
				}
				return
			}
			must(t, Remove(n.removal(kept, objects.Links{})))
			if left := attachedTo(t, n.cgroup); len(left) > 0 {
				t.Errorf("still attached: %v", left)
			}
		})
	}
}
