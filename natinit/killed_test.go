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

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

// A child seeds, attaches, commits or removes, and is killed at some instant of it; then the next run completes. The
// child's work takes some 8 ms, so that the instants cover all of it, with links and without, on a fresh node and on one
// that serves already.
func TestKilledAtAnyInstantTheNextRunCompletes(t *testing.T) {
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
	if len(s.Table.Words) != 4 || len(s.Table.Sets) != 4 || len(s.Table.Frontends) != 8 {
		t.Errorf("%d words, %d sets, %d frontends, want 4, 4, 8", len(s.Table.Words), len(s.Table.Sets), len(s.Table.Frontends))
	}
}

// The instants between two system calls are too short to be hit: what they leave is made by hand.
func TestWhatIsLeftBetweenAttachAndPinIsTakenUp(t *testing.T) {
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
func TestProgramsOfATableThatIsGoneAreReplaced(t *testing.T) {
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
func TestWithoutCapabilitiesNothingIsChanged(t *testing.T) {
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
func TestTheCapabilitiesAskedForAreEnough(t *testing.T) {
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
