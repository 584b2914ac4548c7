package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/lab"
)

// addDevice makes a device in the thread's network namespace; index 0 has the kernel choose one.
func addDevice(t testing.TB, cfg Config, name string, index int) Config {
	t.Helper()
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}, PeerName: name + "p"}))
	dev, err := netlink.LinkByName(name)
	must(t, err)
	if index != 0 && dev.Attrs().Index != index {
		t.Fatalf("%s has index %d, want %d", name, dev.Attrs().Index, index)
	}
	cfg.Target = Device{Name: name, Index: dev.Attrs().Index, TCX: cfg.Target.(Device).TCX}
	return cfg
}

func delDevice(t testing.TB, cfg Config) {
	t.Helper()
	dev, err := netlink.LinkByIndex(cfg.Target.(Device).Index)
	must(t, err)
	must(t, netlink.LinkDel(dev))
}

// wantNothing asks that nothing is pinned or recorded.
func wantNothing(t testing.TB, cfg Config) {
	t.Helper()
	if pins := pinned(t, cfg); len(pins) > 0 {
		t.Errorf("left pinned: %v", pins)
	}
	if left := cfg.Journal.Entries(); len(left) > 0 {
		t.Errorf("left in the journal: %v", left)
	}
}

// hooked are programs that do something when they are loaded: as late as that, and before anything is attached.
type hooked struct {
	counters
	do func()
}

func (h hooked) Load() (map[string]*ebpf.Program, error) {
	progs, err := h.counters.Load()
	h.do()
	return progs, err
}

func TestDeviceVanishesInTheMiddle(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		must(t, bpf.EnsureDir(cfg.Pins.Links()))
		for _, moment := range []string{"before the attach", "in the attach", "after it, before commit", "after it, before rollback", "after commit", "in an upgrade"} {
			c := addDevice(t, cfg, "fhtest0", 0)
			if moment == "before the attach" {
				delDevice(t, c)
			}
			if moment == "in an upgrade" {
				must(t, attach(t, c).Commit())
			}
			if moment == "in the attach" || moment == "in an upgrade" {
				c.Programs = hooked{newCounters(t, 2), func() { delDevice(t, c) }}
			}
			a, err := Attach(c)
			if err != nil {
				t.Fatalf("%s: %v", moment, err)
			}
			if strings.HasPrefix(moment, "after") {
				if a.Gone || len(a.Hooks) != 2 {
					t.Errorf("%s: %+v", moment, a)
				}
				if moment == "after commit" {
					must(t, a.Commit())
				}
				delDevice(t, c)
			} else if !a.Gone || len(a.Hooks) > 0 {
				t.Errorf("%s: gone is %t, %+v", moment, a.Gone, a.Hooks)
			}
			switch moment {
			case "after it, before rollback":
				must(t, a.Rollback())
			case "after commit":
				n, err := DetachGone(c)
				if n != 1 || err != nil {
					t.Errorf("%d devices were cleaned up after, %v", n, err)
				}
			default:
				must(t, a.Commit())
			}
			must(t, a.Close())
			wantNothing(t, c)
			must(t, Detach(c)) // once more
			must(t, DetachDevices(c))
			wantNothing(t, c)
			if t.Failed() {
				t.Fatal(moment)
			}
			must(t, bpf.EnsureDir(cfg.Pins.Dir))
		}
	})
}

// Nobody was there to see that a device went and another came with its index.
func TestDeviceIndexIsReused(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		c := addDevice(t, cfg, "fhtest0", 77)
		first := attach(t, c)
		must(t, errors.Join(first.Commit(), first.Close()))
		delDevice(t, c)
		next := addDevice(t, cfg, "fhtest1", 77)
		if places, err := Order(next); err != nil || places[0].Attached || places[1].Attached {
			t.Errorf("nothing is at the new device: %+v, %v", places, err)
		}
		if _, err := Attach(c); !errors.Is(err, ErrRenamed) {
			t.Errorf("%v, want ErrRenamed for what is known of the old device", err)
		}
		must(t, bpf.EnsureDir(cfg.Pins.Dir))
		a := attach(t, next)
		wantHooks(t, next, a, Added)
		must(t, a.Commit())
		delDevice(t, next)
		must(t, Detach(next))
		wantNothing(t, next)

		// The clsact qdisc of the new one isn't ours.
		if c.Target.(Device).TCX {
			return
		}
		c = addDevice(t, cfg, "fhtest0", 77)
		must(t, bpf.EnsureDir(cfg.Pins.Dir))
		must(t, attach(t, c).Commit())
		delDevice(t, c)
		next = addDevice(t, cfg, "fhtest1", 77)
		must(t, netlink.QdiscAdd(clsactOf(77)))
		must(t, attach(t, next).Commit())
		if made := recorded(cfg.Journal, instance.KindQdisc); len(made) > 0 {
			t.Errorf("recorded as ours: %v", made)
		}
		must(t, DetachDevices(next))
		if q := openTarget(t, next).qdisc; q != qdiscClsact {
			t.Errorf("a qdisc of somebody else's is gone: %q", q)
		}
		delDevice(t, next)
		must(t, bpf.EnsureDir(cfg.Pins.Dir))
	})
}

// A device that is moved to another network namespace keeps its index, and its links. The one that gets its index here
// isn't it.
func TestDeviceMovesToAnotherNetns(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		other, err := lab.Create(lab.WithoutBPFFS())
		must(t, err)
		defer other.Close()
		ns, err := netns.GetFromPath(other.Netns)
		must(t, err)
		defer ns.Close()
		attachedThere := func(c Config) (ids []ebpf.ProgramID) {
			t.Helper()
			must(t, other.Do(func() error { ids = attached(t, c); return nil }))
			return ids
		}
		move := func(c Config) {
			t.Helper()
			dev, err := netlink.LinkByIndex(c.Target.(Device).Index)
			must(t, err)
			must(t, netlink.LinkSetNsFd(dev, int(ns)))
		}
		for i, what := range []string{"its index is used again", "it is detached", "its pins are gone, too", "all is removed"} {
			must(t, bpf.EnsureDir(cfg.Pins.Dir))
			c := addDevice(t, cfg, fmt.Sprintf("fhtest%d", i), 77+i)
			must(t, attach(t, c).Commit())
			move(c)
			if ids := attachedThere(c); len(ids) != map[bool]int{true: 2}[c.Target.(Device).TCX] {
				t.Errorf("%v are attached there: tcx moves along, filters don't", ids)
			}
			switch what {
			case "its index is used again":
				hold(t, c) // as a runtime does
				next := addDevice(t, cfg, "fhnext", 77)
				a := attach(t, next)
				wantHooks(t, next, a, Added)
				must(t, a.Commit())
				must(t, Detach(next))
				delDevice(t, next)
			case "it is detached":
				must(t, Detach(c))
			case "its pins are gone, too":
				losePins(t, c)
				must(t, Detach(c))
			default:
				must(t, DetachDevices(c))
			}
			if ids := attachedThere(c); len(ids) > 0 {
				t.Errorf("%s: still attached there: %v", what, ids)
			}
			must(t, Detach(c))
			wantNothing(t, c)
		}
		must(t, bpf.EnsureDir(cfg.Pins.Dir))
	})
}

func TestDeviceIsRenamed(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		c := addDevice(t, cfg, "fhtest0", 0)
		first := attach(t, c)
		must(t, first.Commit())
		dev, err := netlink.LinkByIndex(c.Target.(Device).Index)
		must(t, err)
		must(t, netlink.LinkSetName(dev, "fhtest9.7"))
		if _, err := Attach(c); !errors.Is(err, ErrRenamed) {
			t.Errorf("%v, want ErrRenamed", err)
		}
		wantHooks(t, c, first, Added) // it is as it was
		d := c.Target.(Device)
		d.Name = "fhtest9.7"
		c.Target = d
		a := attach(t, c)
		wantHooks(t, c, a, Kept)
		must(t, a.Commit())
		must(t, DetachDevices(c))
		if q := openTarget(t, c).qdisc; q != "" {
			t.Errorf("the qdisc that we made is left: %s", q)
		}
		delDevice(t, c)
		wantNothing(t, c)
		must(t, bpf.EnsureDir(cfg.Pins.Dir))
	})
}

// byName are the test's hooks as uninstall knows those of the packet path: without a runtime, and without maps.
func byName(cfg Config) Config {
	cfg.Programs, cfg.Target = ByName(testHooks), nil
	return cfg
}

// What uninstall does: by pins and journal, by the journal alone, and by pins alone.
func TestDetachDevices(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		for _, lost := range []string{"nothing", "pins", "journal"} {
			must(t, bpf.EnsureDir(cfg.Pins.Dir))
			lo := attach(t, cfg)
			must(t, lo.Commit())
			c := addDevice(t, cfg, "fhtest0", 0)
			must(t, attach(t, c).Commit())
			gone := addDevice(t, cfg, "fhtest1", 0)
			must(t, attach(t, gone).Commit())
			other := attachForeign(t, c, testHooks[1], 5, 7)
			delDevice(t, gone)
			u := byName(cfg)
			switch lost {
			case "pins":
				losePins(t, cfg)
				u.Pins = bpf.Pins{}
			case "journal":
				u.Journal = nil
			}
			must(t, CheckDetachDevices(u))
			must(t, DetachDevices(u))
			if ids := attached(t, cfg); len(ids) > 0 {
				t.Errorf("without %s: left attached: %v", lost, ids)
			}
			if ids := attached(t, c); !slices.Equal(ids, []ebpf.ProgramID{other.id}) {
				t.Errorf("without %s: attached %v, want the foreign %d", lost, ids, other.id)
			}
			if lost != "journal" {
				wantNothing(t, cfg)
			}
			if q := openTarget(t, c).qdisc; (q == qdiscClsact) == c.Target.(Device).TCX {
				t.Errorf("without %s: the qdisc is %q, a filter of others is in it", lost, q)
			}
			other.detach(t)
			must(t, DetachDevices(u)) // once more
			delDevice(t, c)
			must(t, DetachDevices(cfg))
			wantNothing(t, cfg)
		}
		must(t, bpf.EnsureDir(cfg.Pins.Dir))
	})
}

// Filters of another network namespace can't be reached: that is found out before anything is changed.
func TestDetachDevicesOfAnotherNetns(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		a := attach(t, cfg)
		must(t, a.Commit())
		other, err := lab.Create(lab.WithoutBPFFS())
		must(t, err)
		defer other.Close()
		must(t, other.Do(func() error {
			err := DetachDevices(byName(cfg))
			if cfg.Target.(Device).TCX { // by the links, from anywhere
				must(t, err)
			} else if !errors.Is(err, ErrOtherNetns) || !strings.Contains(err.Error(), "test_in_1") {
				t.Errorf("%v, want ErrOtherNetns", err)
			}
			return nil
		}))
		if cfg.Target.(Device).TCX {
			if ids := attached(t, cfg); len(ids) > 0 {
				t.Errorf("left attached: %v", ids)
			}
		} else {
			wantHooks(t, cfg, a, Added)
		}
		must(t, bpf.EnsureDir(cfg.Pins.Dir))
	})
}

// What is at a pin's place and isn't ours stops the removal of all.
func TestDetachDevicesOfAForeignPin(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		must(t, attach(t, cfg).Commit())
		f := newForeign(t)
		must(t, errors.Join(bpf.EnsureDir(cfg.Pins.Progs()), f.prog.Pin(cfg.Pins.Progs()+"/test_in_99")))
		if err := DetachDevices(byName(cfg)); !errors.Is(err, bpf.ErrForeign) {
			t.Errorf("%v, want ErrForeign", err)
		}
		if ids := attached(t, cfg); len(ids) != 2 {
			t.Errorf("attached %v, want both as before", ids)
		}
		must(t, f.prog.Unpin())
	})
}

func TestInspectDevices(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		if list, err := InspectDevices(cfg); err != nil || len(list) > 0 {
			t.Errorf("nothing is attached: %+v, %v", list, err)
		}
		must(t, attach(t, cfg).Commit())
		gone := addDevice(t, cfg, "fhtest1", 0)
		must(t, attach(t, gone).Commit())
		delDevice(t, gone)
		c := addDevice(t, cfg, "fhtest0", 0)
		a := attach(t, c)
		must(t, a.Commit())
		other := attachForeign(t, c, testHooks[1], filterPriority, 7)
		for _, from := range []Config{cfg, byName(cfg)} {
			list, err := InspectDevices(from)
			must(t, err)
			if len(list) != 3 {
				t.Fatalf("listed %+v", list)
			}
			clsact := best(cfg.Target) == ByClsact
			if d := list[0]; d.Device != "lo" || d.Index != 1 || len(d.Hooks) != 2 || !d.Hooks[0].First || !d.Hooks[1].First || d.Clsact != clsact {
				t.Errorf("lo: %+v", d)
			}
			if d := list[1]; d.Device != "" || d.Index != gone.Target.(Device).Index || len(d.Leftovers) != 2 {
				t.Errorf("the one that is gone: %+v", d)
			}
			d := list[2]
			if d.Device != "fhtest0" || len(d.Hooks) != 2 || d.Hooks[1].First || d.Hooks[1].Ahead[0].Program != other.id ||
				d.Hooks[0].Program != a.Hooks[0].Program || d.Hooks[1].By != best(cfg.Target) {
				t.Errorf("the one with a foreign program: %+v", d)
			}
			if _, err := json.Marshal(list); err != nil {
				t.Error(err)
			}
		}
		other.detach(t)
		must(t, DetachDevices(cfg))
		delDevice(t, c)
		must(t, bpf.EnsureDir(cfg.Pins.Dir))
	})
}

// Devices come and go all the time, and each is attached to as soon as it is seen.
func TestDevicesComeAndGo(t *testing.T) {
	const devices = 20
	onDevice(t, func(t *testing.T, cfg Config) {
		ns, err := netns.Get()
		must(t, err)
		defer ns.Close()
		var group sync.WaitGroup
		errs := make(chan error, devices)
		for i := range devices {
			nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
			must(t, err)
			group.Go(func() {
				defer nl.Close()
				for round := range 4 {
					v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("fhtest%d", i)}, PeerName: fmt.Sprintf("fhpeer%d", i)}
					if err := nl.LinkAdd(v); err != nil {
						errs <- err
						return
					}
					time.Sleep(time.Duration(1+(i+round)%7) * 5 * time.Millisecond)
					if round < 3 || i%2 == 0 { // half of them stay
						if err := nl.LinkDel(v); err != nil {
							errs <- err
							return
						}
					}
				}
			})
		}
		done := make(chan struct{})
		go func() { group.Wait(); close(done) }()
		seen, vanished := map[int]bool{}, 0
		follow := func() {
			now, err := present()
			must(t, err)
			for index, d := range now {
				if d.TCX = cfg.Target.(Device).TCX; !strings.HasPrefix(d.Name, "fhtest") || seen[index] {
					continue
				}
				c := cfg
				c.Target = d
				a, err := Attach(c)
				if err != nil {
					t.Fatal(err)
				}
				must(t, errors.Join(a.Commit(), a.Close()))
				if a.Gone {
					vanished++
				}
				seen[index] = true
			}
			for index := range seen {
				if _, ok := now[index]; !ok {
					c := cfg
					c.Target = Device{Name: "gone", Index: index}
					must(t, Detach(c))
				}
			}
		}
		for running := true; running; follow() {
			select {
			case <-done:
				running = false
			default:
			}
		}
		close(errs)
		for err := range errs {
			t.Error(err)
		}
		list, err := InspectDevices(cfg)
		must(t, err)
		if len(list) != devices/2 {
			t.Errorf("%d devices are there, and %d listed: %+v", devices/2, len(list), list)
		}
		for _, d := range list {
			if len(d.Hooks) != 2 || !d.Hooks[0].First || !d.Hooks[1].First || len(d.Leftovers) > 0 {
				t.Errorf("listed: %+v", d)
			}
		}
		if pins := pinned(t, cfg); len(pins) != devices {
			t.Errorf("%d pins: %v", len(pins), pins)
		}
		t.Logf("%d devices were seen, %d vanished in the middle", len(seen), vanished)
		must(t, DetachDevices(byName(cfg)))
		for _, d := range list {
			c := cfg
			c.Target = Device{Name: d.Device, Index: d.Index}
			if ids := attached(t, c); len(ids) > 0 || openTarget(t, c).qdisc != "" {
				t.Errorf("left at %s: %v", d.Device, ids)
			}
			delDevice(t, c)
		}
		wantNothing(t, cfg)
	})
}

// job is what a child does until it is killed.
type job struct {
	BPFFS, Journal string
	TCX, Both      bool
	Index          int
}

const childEnv = "FIRSTHOP_TEST_ATTACH"

// child attaches and detaches in both ways, if the kernel has both, restores the order, and says what it begins, until its input ends.
func child() error {
	var j job
	if err := json.NewDecoder(os.Stdin).Decode(&j); err != nil {
		return err
	}
	journal, err := instance.OpenJournal(j.Journal, false)
	if err != nil {
		return err
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "fh_test", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return err
	}
	cfg := Config{Pins: bpf.PinsBelow(j.BPFFS), Journal: journal, Programs: counters{version: 3, count: m}}
	fmt.Println("begins")
	for i := 0; ; i++ {
		cfg.Target = Device{Name: "fhtest0", Index: j.Index, TCX: j.TCX == (!j.Both || i%2 == 0)}
		front := map[string]bool{}
		if i%3 == 1 {
			front[testHooks[i%2].Name] = true
		}
		a, err := attachFirst(cfg, front)
		if err != nil {
			return err
		}
		if i%5 == 2 {
			err = a.Rollback()
		} else {
			err = a.Commit()
		}
		if err := errors.Join(err, a.Close(), bpf.EnsureDir(cfg.Pins.Dir)); err != nil {
			return err
		}
		if i%4 == 3 {
			if err := Detach(cfg); err != nil {
				return err
			}
		}
	}
}

// A child is killed at some instant, and the next run of either kind completes: one way, and nothing else left.
func TestDeviceKilledIsCompletedByTheNextRun(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		c := addDevice(t, cfg, "fhtest0", 0)
		d := c.Target.(Device)
		dir := t.TempDir()
		self, err := os.Executable()
		must(t, err)
		budget := time.Now().Add(4 * time.Second)
		for i := 0; i < 60 && (i < 8 || time.Now().Before(budget)); i++ {
			must(t, bpf.EnsureDir(cfg.Pins.Dir))
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), childEnv+"=1")
			cmd.Stderr = os.Stderr
			cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
			in, err := cmd.StdinPipe()
			must(t, err)
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start()) // in the network namespace of this thread
			must(t, json.NewEncoder(in).Encode(job{strings.TrimSuffix(cfg.Pins.Dir, "/"+bpf.DirName), dir, d.TCX, hasTCX(), d.Index}))
			if _, err := io.ReadFull(out, make([]byte, len("begins\n"))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(i*7%40) * time.Millisecond)
			must(t, cmd.Process.Kill())
			if exit, ok := errors.AsType[*exec.ExitError](cmd.Wait()); !ok || exit.Exited() {
				t.Fatal("the child ended by itself")
			}
			if c.Journal, _, err = instance.RecoverJournal(dir, false); err != nil {
				t.Fatal(err)
			}
			must(t, bpf.EnsureDir(cfg.Pins.Dir))
			if i%3 == 0 {
				must(t, DetachDevices(byName(c)))
				if ids := attached(t, c); len(ids) > 0 || openTarget(t, c).qdisc != "" {
					t.Errorf("round %d: left attached: %v", i, ids)
				}
				wantNothing(t, c)
			} else {
				a := attach(t, c)
				must(t, errors.Join(a.Commit(), a.Close()))
				lab.Await(t, "the killed child's links are detached", func() bool { return len(attached(t, c)) == 2 })
				if ids := attached(t, c); ids[0] != a.Hooks[0].Program || ids[1] != a.Hooks[1].Program || len(pinned(t, c)) != 2 {
					t.Errorf("round %d: attached %v, want %+v, pinned %v", i, ids, a.Hooks, pinned(t, c))
				}
			}
			if t.Failed() {
				t.Fatal("round", i)
			}
		}
		must(t, DetachDevices(byName(c)))
		wantNothing(t, c)
		delDevice(t, c)
		must(t, bpf.EnsureDir(cfg.Pins.Dir))
	})
}

func TestPinnedIndex(t *testing.T) {
	for name, want := range map[string]int{
		"test_in_7": 7, "test_in_7_new": 7, "test_out_12": 12, "test_in": 0, "test_in_": 0, "test_in_x": 0, "test_in_07": 0, "test_in_+7": 0,
		"other_7": 0, "connect4": 0, "test_in_7_8": 0,
	} {
		if index, ok := pinnedIndex(name, testHooks); index != want || ok != (want != 0) {
			t.Errorf("%s: %d, %t", name, index, ok)
		}
	}
}

// Where links can't be listed, a link that only the journal knows, at a device that has moved, is nobody's error.
func TestDetachWithoutAListOfLinks(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		cfg.Links = objects.Unlisted()
		must(t, attach(t, cfg).Commit())
		must(t, Detach(cfg))
		c := addDevice(t, cfg, "fhtest0", 0)
		must(t, bpf.EnsureDir(cfg.Pins.Dir))
		must(t, attach(t, c).Commit())
		losePins(t, c)
		delDevice(t, c)
		must(t, Detach(c))
		if left := recorded(c.Journal, instance.KindDevice); len(left) > 0 {
			t.Errorf("left in the journal: %v", left)
		}
	})
}
