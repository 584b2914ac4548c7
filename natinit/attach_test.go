package natinit

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

func TestRollbackOfAFirstRunLeavesNothing(t *testing.T) {
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
func TestRollbackOfALaterRunLeavesTheFormer(t *testing.T) {
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
func TestAttachMovesLinksOfAnotherCgroup(t *testing.T) {
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
func TestAttachReplacesLinksOfADeadCgroup(t *testing.T) {
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
			if errors.Is(err, os.ErrNotExist) { // its link has ended meanwhile
				continue
			}
			must(t, err)
			_ = link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(dir.Fd()), Program: p, Attach: h.Attach})
			p.Close()
		}
		return len(ids) == 0
	})
}

// From one way of attaching to the other and back, with the same programs and with others, while clients connect.
func TestAttachChangesItsWayUnderTraffic(t *testing.T) {
	lab.NeedsLinux(t, 5, 8, "two ways of attaching")
	n := newNode(t)
	b := bpf.Balancer{UDP: true}
	link := allFeatures()
	prog := without(func(f *bpf.Features) { f.Link = false })
	otherLink := without(helpers)
	otherProg := without(func(f *bpf.Features) {
		helpers(f)
		f.Link = false
	})
	n.up(t, link, b, services(0, 1, 2))
	h := clients.StartHammer(t, n.l, clientPath(t), clients.HammerConfig{Addr: vip4, Workers: 16})
	for round := range 3 {
		for _, step := range []struct {
			f  bpf.Features
			by attach.By
		}{
			{otherProg, attach.ByProg}, {link, attach.ByLink}, {otherProg, attach.ByProg}, {prog, attach.ByProg}, {otherLink, attach.ByLink}, {otherLink, attach.ByLink}, {link, attach.ByLink},
			{prog, attach.ByLink}, // the same program, and it serves: left as it is
		} {
			n.up(t, step.f, b, services(round, (round+1)%3))
			n.wantOnce(t, step.f, b, step.by)
		}
	}
	if r := h.Stop(); len(r.Failures) > 0 || r.Connects < 200 {
		t.Errorf("%d connects, failures %v", r.Connects, r.Failures)
	}
	n.mustConnect(t)
	must(t, n.remove())
	if left := attachedTo(t, n.cgroup); len(left) > 0 {
		t.Errorf("still attached after Remove: %v", left)
	}
}

// A child seeds, attaches, commits or removes, and is killed at some instant of it; then the next run completes. The
// child's work takes some 8 ms, so that the instants cover all of it, with links and without, on a fresh node and on one
// that serves already.
func TestAttachKilledIsCompletedByTheNextRun(t *testing.T) {
	lab.VerifyNoLeaks(t)
	n := newNode(t)
	b := bpf.Balancer{UDP: true}
	budget := time.Now().Add(9 * time.Second)
	killed, ended := 0, 0
	for i := 0; i < 80 && (killed < 10 || time.Now().Before(budget)); i++ { // on a slow machine longer
		f := [...]bpf.Features{allFeatures(), without(func(f *bpf.Features) { f.Link = false })}[i%2]
		job := childJob{BPFFS: n.l.BPFFS, Cgroup: n.cgroup, Features: f, Balancer: b, Backends: []int{i % 3, (i + 1) % 3}}
		switch i / 2 % 4 {
		case 0: // a first run
			must(t, n.remove())
		case 1: // other programs
			job.Features.SetRetval = false
		case 2: // a hook less
			job.Balancer.UDP = false
		case 3:
			job.Remove = true
		}
		if n.killAfter(t, job, time.Duration(i)*100*time.Microsecond) {
			killed++
		} else {
			ended++
		}
		n.up(t, f, b, services(0, 1, 2))
		n.wantWhole(t, f, b)
		for _, e := range goClient(t).Run(t, n.l, clients.TCP, vip4, "hello") {
			if e.Error != "" {
				t.Fatalf("round %d: %+v", i, e)
			}
		}
		if t.Failed() {
			t.Fatalf("round %d: %+v", i, job)
		}
	}
	t.Logf("%d killed, %d ended before that", killed, ended)
	if killed < 10 {
		t.Errorf("only %d children were killed at work", killed)
	}
	n.mustConnect(t)
	must(t, n.remove())
	if _, err := os.Lstat(n.pins.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", n.pins.Dir, err)
	}
}

// killAfter kills a child a while after it has begun, and reports whether that was before its end.
func (n *node) killAfter(t *testing.T, job childJob, after time.Duration) bool {
	t.Helper()
	cmd := startChild(t, job)
	for begin := time.Now(); time.Since(begin) < after; { // finer than the timers
	}
	must(t, cmd.Process.Kill())
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		t.Fatalf("the child failed by itself: %v", err)
	}
	return err != nil
}

// wantWhole asks that there is what a whole run leaves, and nothing besides: no pin, no program, no word, no set.
func (n *node) wantWhole(t testing.TB, f bpf.Features, b bpf.Balancer) {
	t.Helper()
	s := n.snapshot(t)
	for hook, ids := range s.Attached {
		if len(ids) != 1 {
			t.Errorf("%s has programs %v", hook, ids)
		}
	}
	if len(s.Attached) != len(b.Hooks(f)) {
		t.Errorf("attached %v", s.Attached)
	}
	pinned, err := Pinned(n.pins)
	must(t, err)
	if want := len(n.pins.AllMapPins()) + len(b.Hooks(f)); len(pinned) != want {
		t.Errorf("%d pins, want %d: %v", len(pinned), want, pinned)
	}
	files := 0
	for path, what := range s.Pins {
		if strings.HasPrefix(path, n.pins.Dir) && what != "directory" {
			files++
		}
	}
	if files != len(pinned) {
		t.Errorf("pins of another name: %v", s.Pins)
	}
	if len(s.Table.ServiceStates) != 4 || len(s.Table.Sets) != 4 || len(s.Table.Frontends) != 8 {
		t.Errorf("%d words, %d sets, %d frontends, want 4, 4, 8", len(s.Table.ServiceStates), len(s.Table.Sets), len(s.Table.Frontends))
	}
}

// The instants between two system calls are too short to be hit: what they leave is made by hand.
func TestAttachTakesUpWhatIsLeftBeforeThePin(t *testing.T) {
	for by, f := range byRung() {
		for _, keep := range []bool{false, true} {
			name := map[bool]string{false: "by a run that needs the hook no more", true: "by the same run again"}[keep]
			t.Run(string(by)+", "+name, func(t *testing.T) {
				lab.VerifyNoLeaks(t)
				n := newNode(t)
				n.up(t, f, bpf.Balancer{UDP: true}, services(0, 1, 2))
				dir := map[attach.By]string{attach.ByLink: n.pins.Links(), attach.ByProg: n.pins.Progs()}[by]
				for _, h := range (bpf.Balancer{UDP: true}).Hooks(f) {
					pin := filepath.Join(dir, h.Name)
					must(t, os.Rename(pin, pin+"_new"))
				}
				b := bpf.Balancer{UDP: keep}
				n.up(t, f, b, services(0, 1, 2))
				n.wantWhole(t, f, b)
				must(t, n.remove())
			})
		}
	}
}

// Somebody removed the pins of the table while programs that use it are attached.
func TestAttachReplacesProgramsOfALostTable(t *testing.T) {
	for by, f := range byRung() {
		t.Run(string(by), func(t *testing.T) {
			lab.VerifyNoLeaks(t)
			n := newNode(t)
			b := bpf.Balancer{UDP: true}
			n.up(t, f, b, services(0))
			must(t, os.RemoveAll(n.pins.Maps()))
			n.up(t, f, b, services(1, 2))
			n.wantOnce(t, f, b, by)
			n.wantWhole(t, f, b)
			n.mustConnect(t)

			must(t, os.RemoveAll(n.pins.Maps()))
			must(t, n.remove())
			if left := attachedTo(t, n.cgroup); len(left) > 0 {
				t.Errorf("still attached: %v", left)
			}
		})
	}
}

// A root without capabilities, as in a container that isn't privileged.
func TestAttachWithoutCapabilitiesChangesNothing(t *testing.T) {
	lab.VerifyNoLeaks(t)
	n := newNode(t)
	job := childJob{BPFFS: n.l.BPFFS, Cgroup: n.cgroup, Features: allFeatures(), Balancer: bpf.Balancer{UDP: true}, Backends: []int{0}}
	refused := func(job childJob) {
		t.Helper()
		before := n.snapshot(t)
		out, err := runWithCapabilities(t, job)
		if err == nil || !strings.Contains(out, "operation not permitted") || !strings.Contains(out, "CAP_SYS_ADMIN and CAP_NET_ADMIN") {
			t.Errorf("%+v: %v, %s: want EPERM, and what is missing", job, err, out)
		}
		before.wantSame(t, n.snapshot(t))
	}
	refused(job)
	n.up(t, allFeatures(), bpf.Balancer{UDP: true}, services(0))
	refused(job)
	job.Remove = true
	refused(job)
	n.mustConnect(t)
	must(t, n.remove())
}

// runWithCapabilities runs a child that has no other capabilities: they are taken out of the bounding set of a thread that
// starts it, and then ends.
func runWithCapabilities(t *testing.T, job childJob, keep ...int) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), self(t))
	cmd.Env = append(os.Environ(), childEnv+"=init")
	data, err := json.Marshal(job)
	must(t, err)
	cmd.Stdin = strings.NewReader(string(data))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = ns.Do(func() error {
		for c := 0; c <= unix.CAP_LAST_CAP; c++ {
			if slices.Contains(keep, c) {
				continue
			}
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
				return err
			}
		}
		return cmd.Run()
	})
	return out.String(), err
}

// What the error above asks for is enough: for a first run, for another one, and for the way back.
func TestAttachNeedsNoMoreCapabilities(t *testing.T) {
	lab.VerifyNoLeaks(t)
	for by, f := range byRung() {
		n := newNode(t)
		job := childJob{BPFFS: n.l.BPFFS, Cgroup: n.cgroup, Features: f, Balancer: bpf.Balancer{UDP: true}}
		for _, job.Backends = range [][]int{{0}, {0}, {1, 2}} {
			if out, err := runWithCapabilities(t, job, unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN); err != nil {
				t.Errorf("%s: %v: %s", by, err, out)
			}
		}
		n.mustConnect(t)
		job.Remove = true
		if out, err := runWithCapabilities(t, job, unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN); err != nil {
			t.Errorf("%s: %v: %s", by, err, out)
		}
	}
}

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
