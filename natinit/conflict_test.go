package natinit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/test/lab"
)

// Flags of BPF_PROG_ATTACH.
const (
	exclusive = 0
	override  = 1 << 0
	multi     = 1 << 1
)

// foreign is somebody else's program, which counts how often it runs and lets all pass.
type foreign struct {
	hook   bpf.Hook
	cgroup string
	prog   *ebpf.Program
	count  *ebpf.Map
	gone   bool
}

func newForeign(t testing.TB, cgroup string, h bpf.Hook, flags uint32) *foreign {
	t.Helper()
	f := loadForeign(t, h)
	f.cgroup = cgroup
	must(t, f.attach(flags))
	t.Cleanup(func() { f.detach(t) })
	return f
}

func loadForeign(t testing.TB, h bpf.Hook) *foreign {
	t.Helper()
	count, err := ebpf.NewMap(&ebpf.MapSpec{Name: "stranger", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	must(t, err)
	t.Cleanup(func() { count.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "stranger", Type: ebpf.CGroupSockAddr, AttachType: h.Attach, License: "GPL",
		Instructions: asm.Instructions{
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, count.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "pass"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("pass"),
			asm.Return(),
		},
	})
	must(t, err)
	t.Cleanup(func() { prog.Close() })
	return &foreign{hook: h, prog: prog, count: count}
}

func (f *foreign) attach(flags uint32) error {
	dir, err := os.Open(f.cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	return link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: f.prog, Attach: f.hook.Attach, Flags: flags})
}

func (f *foreign) detach(t testing.TB) {
	t.Helper()
	if f.gone {
		return
	}
	f.gone = true
	dir, err := os.Open(f.cgroup)
	must(t, err)
	defer dir.Close()
	must(t, link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(dir.Fd()), Program: f.prog, Attach: f.hook.Attach}))
}

func (f *foreign) id(t testing.TB) ebpf.ProgramID {
	t.Helper()
	info, err := f.prog.Info()
	must(t, err)
	id, _ := info.ID()
	return id
}

// survives asks that the program is attached, and with runs that it runs on a connect in the lab.
func (f *foreign) survives(t testing.TB, n *node, when string, runs bool) {
	t.Helper()
	if ids := attachedTo(t, f.cgroup)[f.hook.Name]; !slices.Contains(ids, f.id(t)) {
		t.Errorf("%s: the foreign program %d is not among %v", when, f.id(t), ids)
	}
	before := f.runs(t)
	goClient(t).Run(t, n.l, "tcp", "192.0.2.11:6443", "hello")
	if now := f.runs(t); (now > before) != runs {
		t.Errorf("%s: the foreign program ran %d times, want some: %v", when, now-before, runs)
	}
}

func (f *foreign) runs(t testing.TB) (count uint64) {
	t.Helper()
	must(t, f.count.Lookup(uint32(0), &count))
	return count
}

func hook(name string) bpf.Hook {
	for _, h := range bpf.Hooks() {
		if h.Name == name {
			return h
		}
	}
	panic(name)
}

var flagNames = map[uint32]string{exclusive: "exclusive", override: "OVERRIDE", multi: "MULTI"}

// What was there first, at our cgroup or above it: it is still there after an attach, a way back and Remove; and where
// it lets no other in, the error says who it is.
func TestAttachBesideForeignPrograms(t *testing.T) {
	for by, f := range byRung() {
		for _, flags := range []uint32{exclusive, override, multi} {
			for _, above := range []bool{false, true} {
				where := map[bool]string{false: "at our cgroup", true: "above it"}[above]
				t.Run(fmt.Sprintf("%s, %s, %s", by, flagNames[flags], where), func(t *testing.T) {
					lab.VerifyNoLeaks(t)
					n := newNode(t)
					theirs := n.cgroup
					if above {
						inner, err := n.l.NewCgroup("ours")
						must(t, err)
						n.cgroup = inner
					}
					stranger := newForeign(t, theirs, hook("connect4"), flags)
					if flags == multi || flags == override && above {
						n.checkCoexists(t, f, stranger)
					} else {
						n.checkConflict(t, f, stranger)
					}
				})
			}
		}
	}
}

func (n *node) checkCoexists(t *testing.T, f bpf.Features, stranger *foreign) {
	b := bpf.Balancer{UDP: true}
	conflicts, err := attach.Conflicts(n.cgroup, f, "")
	must(t, err)
	if len(conflicts) > 0 {
		t.Errorf("foretold %q, want none", conflicts)
	}
	r := n.mustBegin(t, f, b, services(0))
	stranger.survives(t, n, "attached", true)
	r.rollback(t)
	stranger.survives(t, n, "taken back", true)
	n.up(t, f, b, services(0))
	stranger.survives(t, n, "committed", true)
	n.up(t, f, bpf.Balancer{}, services(1))
	stranger.survives(t, n, "changed", true)
	must(t, n.remove())
	stranger.survives(t, n, "removed", true)
	if left := len(attachedTo(t, n.cgroup)["connect4"]); left > 1 || left == 1 && stranger.cgroup != n.cgroup {
		t.Errorf("%d programs are left at connect4", left)
	}
}

func (n *node) checkConflict(t *testing.T, f bpf.Features, stranger *foreign) {
	before := n.snapshot(t)
	_, err := n.begin(f, bpf.Balancer{UDP: true}, services(0))
	if !errors.Is(err, attach.ErrConflict) {
		t.Fatalf("got %v, want ErrConflict", err)
	}
	for _, want := range []string{"connect4", fmt.Sprintf("program %d", stranger.id(t)), `"stranger"`, fmt.Sprintf("pid %d", os.Getpid()), stranger.cgroup} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoesn't name %s", err, want)
		}
	}
	before.wantSame(t, n.snapshot(t))
	stranger.survives(t, n, "after the refusal", true)
	conflicts, err := attach.Conflicts(n.cgroup, f, "")
	must(t, err)
	if len(conflicts) != 1 || !strings.Contains(conflicts[0].What, fmt.Sprintf("program %d", stranger.id(t))) {
		t.Errorf("foretold %q, want the conflict", conflicts)
	}
}

// A path may be relative, and the hierarchy ends somewhere.
func TestConflictsOfARelativePath(t *testing.T) {
	n := newNode(t)
	t.Chdir(filepath.Dir(n.cgroup))
	if found, err := attach.Conflicts(filepath.Base(n.cgroup), allFeatures(), ""); err != nil || len(found) > 0 {
		t.Errorf("%v, %v", found, err)
	}
}

func TestAttachBeforeForeignPrograms(t *testing.T) {
	for by, f := range byRung() {
		t.Run(string(by), func(t *testing.T) {
			lab.VerifyNoLeaks(t)
			n := newNode(t)
			b := bpf.Balancer{UDP: true}
			n.up(t, f, b, services(0))
			before := n.snapshot(t)

			// One that wants the hook for itself is kept out by the kernel: ours let others in, and nobody evict them.
			alone := loadForeign(t, hook("connect4"))
			alone.cgroup = n.cgroup
			if err := alone.attach(exclusive); !errors.Is(err, unix.EPERM) {
				t.Errorf("an exclusive attach beside ours: %v, want EPERM", err)
			}
			before.wantSame(t, n.snapshot(t))

			stranger := newForeign(t, n.cgroup, hook("connect4"), multi)
			n.up(t, f, b, services(0))
			stranger.survives(t, n, "second run", true)
			n.up(t, f, bpf.Balancer{}, services(0, 1))
			stranger.survives(t, n, "other programs", true)
			m, err := bpf.OpenMaps(n.pins, true)
			must(t, err)
			states, err := attach.Inspect(n.pins, m, n.cgroup)
			must(t, err)
			m.Close()
			if st := states[len(states)-2]; st.Hook != "connect4" || !st.Attached || len(st.Foreign) != 1 || !strings.Contains(st.Foreign[0], "stranger") {
				t.Errorf("%+v, want ours and the stranger", st)
			}
			must(t, n.remove())
			stranger.survives(t, n, "removed", true)
		})
	}
}

// Something of somebody else's stands where our pin would be. Nothing of it is changed by anything that we do.
func TestAttachLeavesForeignPins(t *testing.T) {
	for by, f := range byRung() {
		dir := map[attach.By]func(bpf.Pins) string{attach.ByLink: bpf.Pins.Links, attach.ByProg: bpf.Pins.Progs}[by]
		for what, put := range foreignPins(by) {
			t.Run(string(by)+", "+what, func(t *testing.T) {
				lab.VerifyNoLeaks(t)
				n := newNode(t)
				must(t, os.Mkdir(n.pins.Dir, 0o700))
				must(t, os.Mkdir(dir(n.pins), 0o700))
				pin := filepath.Join(dir(n.pins), "connect4")
				put(t, n, pin)
				before := n.snapshot(t)
				if _, err := n.begin(f, bpf.Balancer{UDP: true}, services(0)); !errors.Is(err, bpf.ErrForeign) || !strings.Contains(err.Error(), pin) {
					t.Errorf("got %v, want ErrForeign with the path", err)
				}
				before.wantSame(t, n.snapshot(t))
				if err := n.remove(); !errors.Is(err, bpf.ErrForeign) || !strings.Contains(err.Error(), pin) {
					t.Errorf("Remove: %v, want ErrForeign with the path", err)
				}
				before.wantSame(t, n.snapshot(t))
			})
		}
	}
}

func foreignPins(by attach.By) map[string]func(t *testing.T, n *node, pin string) {
	all := map[string]func(t *testing.T, n *node, pin string){
		"a map": func(t *testing.T, n *node, pin string) {
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
			must(t, err)
			defer m.Close()
			must(t, m.Pin(pin))
		},
		"a program": func(t *testing.T, n *node, pin string) { must(t, loadForeign(t, hook("connect4")).prog.Pin(pin)) },
		"a directory": func(t *testing.T, n *node, pin string) {
			must(t, os.Mkdir(pin, 0o700))
		},
	}
	if allFeatures().Link {
		all["a link of another hook"] = func(t *testing.T, n *node, pin string) { pinForeignLink(t, n, pin, "sendmsg4") }
	}
	if by == attach.ByLink {
		all["a link of a foreign program at this hook"] = func(t *testing.T, n *node, pin string) { pinForeignLink(t, n, pin, "connect4") }
	}
	return all
}

func pinForeignLink(t *testing.T, n *node, pin, at string) {
	t.Helper()
	f := loadForeign(t, hook(at))
	dir, err := os.Open(n.cgroup)
	must(t, err)
	defer dir.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: f.prog, Attach: f.hook.Attach})
	must(t, err)
	defer l.Close()
	must(t, l.Pin(pin))
}
