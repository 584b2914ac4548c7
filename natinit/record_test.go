package natinit

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf/link"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/test/lab"
)

// notes is a record in memory.
type notes []attach.RecordedProgram

func (r *notes) Note(p []attach.RecordedProgram) error { *r = append(*r, p...); return nil }
func (r *notes) Noted(p attach.RecordedProgram) bool   { return slices.Contains(*r, p) }
func (r *notes) Empty() bool                           { return len(*r) == 0 }
func (n *node) removal(r attach.Record, l objects.Links) attach.Removal {
	return attach.Removal{Cgroup: n.cgroup, CgroupID: cgroupID(n.cgroup), Record: r, Links: l}
}

// upNoted runs a whole init stage that notes its programs.
func (n *node) upNoted(t *testing.T, f bpf.Features, r attach.Record) {
	t.Helper()
	s, err := Seed(n.seedConfig(f, services(0)))
	must(t, err)
	cfg := n.attachConfig(s.Maps, f, bpf.Balancer{UDP: true})
	cfg.Record = r
	a, err := attach.Attach(cfg)
	must(t, err)
	(&run{s, a}).commit(t)
}

// The pins are gone with a bpffs, and the kernel is one of 5.3 to 5.7, on which a list of links ends in EINVAL.
func TestRemovalWithoutAListOfLinks(t *testing.T) {
	for by, f := range byRung() {
		t.Run(string(by), func(t *testing.T) {
			lab.VerifyNoLeaks(t)
			n, r := newNode(t), &notes{}
			n.upNoted(t, f, r)
			held := n.holdLinks(t)
			must(t, os.RemoveAll(n.pins.Dir))
			before := attachedTo(t, n.cgroup)
			removal := n.removal(r, objects.Unlisted())
			must(t, removal.Check())
			if now := attachedTo(t, n.cgroup); len(now) != len(before) || len(now) == 0 {
				t.Errorf("a check changed what is attached: %v, then %v", before, now)
			}
			err := removal.Remove()
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
			must(t, n.removal(r, objects.Links{}).Remove())
			if left := attachedTo(t, n.cgroup); len(left) > 0 {
				t.Errorf("still attached: %v", left)
			}
		})
	}
}

// holdLinks keeps links attached that lose their pins, as another mount of the bpffs does.
func (n *node) holdLinks(t *testing.T) (held []link.Link) {
	t.Helper()
	for _, h := range bpf.Hooks() {
		l, err := link.LoadPinnedLink(n.pins.Links()+"/"+h.Name, nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		must(t, err)
		held = append(held, l)
		t.Cleanup(func() { l.Close() })
	}
	return held
}

// An attach looks for links of ours as well. Where none are listed there is none.
func TestAttachWithoutAListOfLinks(t *testing.T) {
	n, r := newNode(t), &notes{}
	n.upNoted(t, allFeatures(), r)
	must(t, attach.Remove(n.pins, n.cgroup))
	s, err := Seed(n.seedConfig(allFeatures(), services(0)))
	must(t, err)
	cfg := n.attachConfig(s.Maps, allFeatures(), bpf.Balancer{UDP: true})
	cfg.Record, cfg.Links = r, objects.Unlisted()
	a, err := attach.Attach(cfg)
	must(t, err)
	(&run{s, a}).commit(t)
	n.mustConnect(t)
	must(t, attach.Remove(n.pins, n.cgroup))
}
