package natinit

import (
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf/link"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/lab"
)

func newJournal(t testing.TB) *instance.Journal { return instance.NewJournal(t.TempDir(), false) }

// removal is for an instance whose bpffs is gone.
func (n *node) removal(j *instance.Journal, l objects.Links) attach.Config {
	return attach.Config{Target: attach.Cgroup{Path: n.cgroup, ID: cgroupID(n.cgroup)}, Journal: j, Links: l}
}

// upRecorded runs a whole init stage that records its programs.
func (n *node) upRecorded(t *testing.T, f bpf.Features, j *instance.Journal) {
	t.Helper()
	s, err := Seed(n.seedConfig(f, services(0)))
	must(t, err)
	cfg := n.attachConfig(s.Maps, f, bpf.Balancer{UDP: true})
	cfg.Journal = j
	a, err := attach.Attach(cfg)
	must(t, err)
	(&run{s, a}).commit(t)
}

// The pins are gone with a bpffs, and the kernel is one of 5.3 to 5.7, on which a list of links ends in EINVAL.
func TestRemovalWithoutAListOfLinks(t *testing.T) {
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
	n, j := newNode(t), newJournal(t)
	n.upRecorded(t, allFeatures(), j)
	must(t, n.remove())
	s, err := Seed(n.seedConfig(allFeatures(), services(0)))
	must(t, err)
	cfg := n.attachConfig(s.Maps, allFeatures(), bpf.Balancer{UDP: true})
	cfg.Journal, cfg.Links = j, objects.Unlisted()
	a, err := attach.Attach(cfg)
	must(t, err)
	(&run{s, a}).commit(t)
	n.mustConnect(t)
	must(t, n.remove())
}
