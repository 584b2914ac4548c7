package natinit

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/test/lab"
)

func TestAFirstRunThatIsTakenBackLeavesNothing(t *testing.T) {
	for by, f := range byRung() {
		t.Run(string(by), func(t *testing.T) {
			lab.VerifyNoLeaks(t)
			n := newNode(t)
			before := n.snapshot(t)

			s, err := Seed(n.seedConfig(f, services(0, 1)))
			must(t, err)
			must(t, s.Rollback())
			must(t, s.Close())
			before.wantSame(t, n.snapshot(t))

			r := n.mustBegin(t, f, bpf.Balancer{UDP: true}, services(0, 1))
			n.mustConnect(t)
			r.rollback(t)
			before.wantSame(t, n.snapshot(t))
		})
	}
}

// Whatever there was before runs again: programs, words, links.
func TestALaterRunThatIsTakenBackLeavesTheFormer(t *testing.T) {
	other := bpf.Balancer{}
	for by, f := range byRung() {
		for toBy, to := range byRung() {
			t.Run(string(by)+" to "+string(toBy), func(t *testing.T) {
				lab.VerifyNoLeaks(t)
				n := newNode(t)
				n.up(t, f, bpf.Balancer{UDP: true}, services(0, 1))
				before := n.snapshot(t)

				s, err := Seed(n.seedConfig(to, services(1, 2)))
				must(t, err)
				must(t, s.Rollback())
				must(t, s.Close())
				before.wantSame(t, n.snapshot(t))

				for _, b := range []bpf.Balancer{{UDP: true}, other} {
					n.mustBegin(t, to, b, services(2)).rollback(t)
					before.wantSame(t, n.snapshot(t))
				}
				n.mustConnect(t)
			})
		}
	}
}

// The last hook of all can't be attached: what was attached before it is taken back.
func TestAttachIsAllOrNothing(t *testing.T) {
	for by, f := range byRung() {
		t.Run(string(by), func(t *testing.T) {
			lab.VerifyNoLeaks(t)
			n := newNode(t)
			last := bpf.Hooks()[len(bpf.Hooks())-1]
			foreign := newForeign(t, n.cgroup, last, exclusive)
			before := n.snapshot(t)
			if _, err := n.begin(f, bpf.Balancer{UDP: true}, services(0)); !errors.Is(err, attach.ErrConflict) {
				t.Errorf("got %v, want ErrConflict", err)
			}
			before.wantSame(t, n.snapshot(t))
			if _, err := os.Lstat(n.pins.Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", n.pins.Dir, err)
			}
			foreign.detach(t)

			// The same with former programs of ours at the other hooks.
			n.up(t, f, bpf.Balancer{}, services(0))
			n.detach(t, last)
			foreign = newForeign(t, n.cgroup, last, exclusive)
			before = n.snapshot(t)
			if _, err := n.begin(f, bpf.Balancer{UDP: true}, services(0, 1)); !errors.Is(err, attach.ErrConflict) {
				t.Errorf("got %v, want ErrConflict", err)
			}
			before.wantSame(t, n.snapshot(t))
			foreign.detach(t)
			n.up(t, f, bpf.Balancer{UDP: true}, services(0, 1))
			n.mustConnect(t)
		})
	}
}

// A run took the wrong cgroup for the root, or a container's: the links move, and come back if the new run fails.
func TestLinksThatAreElsewhereMove(t *testing.T) {
	lab.NeedsLinux(t, 5, 8, "links")
	n := newNode(t)
	elsewhere, err := n.l.NewCgroup("elsewhere")
	must(t, err)
	b := bpf.Balancer{UDP: true}
	wrong := &node{l: n.l, pins: n.pins, cgroup: elsewhere}
	wrong.up(t, allFeatures(), b, services(0))
	here, there := n.snapshot(t), wrong.snapshot(t)

	n.mustBegin(t, allFeatures(), b, services(0)).rollback(t)
	here.wantSame(t, n.snapshot(t))
	there.wantSame(t, wrong.snapshot(t))

	r := n.mustBegin(t, allFeatures(), b, services(0))
	for _, h := range r.attached.Hooks {
		if h.Change != attach.Added || h.Note == "" {
			t.Errorf("%+v, want it added, with a note", h)
		}
	}
	r.commit(t)
	n.wantOnce(t, allFeatures(), b, best())
	if left := attachedTo(t, elsewhere); len(left) > 0 {
		t.Errorf("still attached elsewhere: %v", left)
	}
	n.mustConnect(t)
}

// The cgroup of the links died (cilium/cilium#48420): status was healthy, and nothing was served.
func TestLinksOfADeadCgroupAreReplaced(t *testing.T) {
	n := newNode(t)
	dead, err := n.l.NewCgroup("dead")
	must(t, err)
	b := bpf.Balancer{UDP: true}
	(&node{l: n.l, pins: n.pins, cgroup: dead}).up(t, allFeatures(), b, services(0))
	must(t, os.Remove(dead))
	// The kernel detaches what was attached a little after the directory is gone.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		states, err := attach.Inspect(n.pins, nil, n.cgroup)
		must(t, err)
		if !slices.ContainsFunc(states, func(st attach.State) bool { return st.Attached || st.CgroupID != 0 }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v of a dead cgroup", states)
		}
	}
	n.up(t, allFeatures(), b, services(0))
	n.wantOnce(t, allFeatures(), b, best())
	n.mustConnect(t)
}

// detach detaches what is attached at a hook, and unpins it.
func (n *node) detach(t testing.TB, h bpf.Hook) {
	t.Helper()
	for _, dir := range []string{n.pins.Links(), n.pins.Progs()} {
		if err := os.Remove(filepath.Join(dir, h.Name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	dir, err := os.Open(n.cgroup)
	must(t, err)
	defer dir.Close()
	lab.Await(t, "nothing is attached at "+h.Name, func() bool {
		ids := attachedTo(t, n.cgroup)[h.Name]
		for _, id := range ids {
			p, err := ebpf.NewProgramFromID(id)
			must(t, err)
			_ = link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(dir.Fd()), Program: p, Attach: h.Attach})
			p.Close()
		}
		return len(ids) == 0
	})
}
