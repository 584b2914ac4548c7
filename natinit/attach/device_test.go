package attach

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/lab"
)

// counters are trivial programs: each counts the packets that it sees, and leaves them to whatever comes next.
type counters struct {
	version int64
	count   *ebpf.Map
}

var testHooks = []bpf.Hook{{Name: "test_out", Attach: ebpf.AttachTCXEgress}, {Name: "test_in", Attach: ebpf.AttachTCXIngress}}

func newCounters(t testing.TB, version int64) counters {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "fh_test", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	must(t, err)
	t.Cleanup(func() { m.Close() })
	return counters{version, m}
}

func (c counters) AllHooks() []bpf.Hook { return slices.Clone(testHooks) }
func (c counters) Hooks() []bpf.Hook    { return testHooks }

func (c counters) Load() (map[string]*ebpf.Program, error) {
	progs := map[string]*ebpf.Program{}
	for _, h := range testHooks {
		p, err := loadCounter(h.Program(), c.version, c.count)
		if err != nil {
			return nil, err
		}
		progs[h.Name] = p
	}
	return progs, nil
}

func loadCounter(name string, version int64, count *ebpf.Map) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.LoadImm(asm.R6, version, asm.DWord), // two versions have two tags
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, count.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "next"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("next"), // TC_ACT_UNSPEC, TCX_NEXT
		asm.Return(),
	}})
}

// Inspect tells ours by the name, as the map of another version may be gone, and the version by the map.
func (c counters) Inspect(p *ebpf.Program) (Known, error) {
	info, err := p.Info()
	if err != nil {
		return Known{}, err
	}
	id, _ := info.ID()
	k := Known{ID: id, Name: info.Name, Ours: strings.HasPrefix(info.Name, "fh_test_")}
	if m, err := c.count.Info(); err == nil {
		mapID, _ := m.ID()
		maps, _ := info.MapIDs()
		k.Current = slices.Contains(maps, mapID)
	}
	return k, nil
}

func (c counters) seen(t testing.TB) (n uint64) {
	t.Helper()
	must(t, c.count.Lookup(uint32(0), &n))
	return n
}

// onDevice runs a test on a device of a namespace of its own, by each way that the kernel has.
func onDevice(t *testing.T, test func(t *testing.T, cfg Config)) {
	for _, by := range []By{ByTCX, ByClsact} {
		t.Run(string(by), func(t *testing.T) {
			if by == ByTCX {
				lab.NeedsLinux(t, 6, 6, "tcx")
			}
			lab.VerifyNoLeaks(t)
			l := lab.New(t)
			must(t, l.Do(func() error {
				dev, err := netlink.LinkByName("lo")
				if err != nil {
					return err
				}
				cfg := Config{
					Pins: bpf.PinsBelow(l.BPFFS), Target: Device{Name: "lo", Index: dev.Attrs().Index, TCX: by == ByTCX},
					Programs: newCounters(t, 1), Journal: instance.NewJournal(t.TempDir(), false),
				}
				must(t, bpf.EnsureDir(cfg.Pins.Dir))
				test(t, cfg)
				must(t, Detach(cfg))
				if ids := attached(t, cfg); len(ids) > 0 {
					t.Errorf("left attached: %v", ids)
				}
				if left := cfg.Journal.Entries(); len(left) > 0 {
					t.Errorf("left in the journal: %v", left)
				}
				return nil
			}))
		})
	}
}

// attached are the programs at both hooks.
func attached(t testing.TB, cfg Config) (ids []ebpf.ProgramID) {
	t.Helper()
	s, err := cfg.Target.open()
	must(t, err)
	for _, h := range testHooks {
		at, err := s.programs(h)
		must(t, err)
		ids = append(ids, at...)
	}
	return ids
}

func attach(t testing.TB, cfg Config) *Attached {
	t.Helper()
	a, err := Attach(cfg)
	must(t, err)
	t.Cleanup(func() { a.Close() })
	return a
}

func wantHooks(t testing.TB, cfg Config, a *Attached, change Change) {
	t.Helper()
	for _, res := range a.Hooks {
		if res.Change != change || res.By != best(cfg.Target) {
			t.Errorf("%s: %s by %s, want %s", res.Hook, res.Change, res.By, change)
		}
		if _, err := os.Lstat(res.PinOf(cfg.Pins)); err != nil {
			t.Error(err)
		}
	}
	if ids := attached(t, cfg); len(ids) != 2 || ids[0] != a.Hooks[0].Program || ids[1] != a.Hooks[1].Program {
		t.Errorf("attached %v, want what %v says", ids, a.Hooks)
	}
}

// ping sends a datagram to the device.
func ping(t testing.TB) {
	t.Helper()
	c, err := net.Dial("udp", "127.0.0.1:9")
	must(t, err)
	defer c.Close()
	_, err = c.Write([]byte("x"))
	must(t, err)
}

func TestDeviceIsAttachedUpgradedAndKept(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		first := attach(t, cfg)
		wantHooks(t, cfg, first, Added)
		must(t, first.Commit())
		ping(t)
		lab.Await(t, "the programs see packets", func() bool { return cfg.Programs.(counters).seen(t) >= 2 })
		again := attach(t, cfg)
		wantHooks(t, cfg, again, Kept)
		must(t, again.Commit())
		if n := len(cfg.Journal.Entries()); n != 2 {
			t.Errorf("%d programs in the journal", n)
		}

		next := cfg
		next.Programs = newCounters(t, 2)
		upgraded := attach(t, next)
		wantHooks(t, next, upgraded, Changed)
		must(t, upgraded.Rollback())
		if ids := attached(t, cfg); !slices.Equal(ids, []ebpf.ProgramID{first.Hooks[0].Program, first.Hooks[1].Program}) {
			t.Errorf("after a rollback %v are attached", ids)
		}
		again = attach(t, cfg)
		wantHooks(t, cfg, again, Kept)
		must(t, again.Commit())

		upgraded = attach(t, next)
		wantHooks(t, next, upgraded, Changed)
		must(t, upgraded.Commit())
		ping(t)
		lab.Await(t, "the new programs see packets", func() bool { return next.Programs.(counters).seen(t) >= 2 })
	})
}

// What a crash leaves behind is found by the journal alone.
func TestDeviceIsInTheJournalFirst(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		none := cfg
		none.Journal = instance.NewJournal("/proc/none", false)
		if a, err := Attach(none); err == nil {
			t.Error("attached without a journal that can be written", a.Close())
		}
		if ids := attached(t, cfg); len(ids) > 0 {
			t.Errorf("attached before it was in the journal: %v", ids)
		}
		must(t, bpf.EnsureDir(cfg.Pins.Dir)) // the failure has removed it
		must(t, attach(t, cfg).Commit())
		lost := cfg
		lost.Journal = instance.NewJournal(t.TempDir(), false)
		must(t, attach(t, lost).Commit())
		for _, j := range []*instance.Journal{cfg.Journal, lost.Journal} {
			if n := len(j.Entries()); n != 2 {
				t.Errorf("%d programs in the journal", n)
			}
		}
	})
}

// The first run of all: what it attached is gone, and so are its pins.
func TestDeviceRollbackLeavesNothing(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		a := attach(t, cfg)
		must(t, a.Rollback())
		deadline := time.Now().Add(detachTime)
		for len(attached(t, cfg)) > 0 && time.Now().Before(deadline) {
		}
		if ids := attached(t, cfg); len(ids) > 0 {
			t.Errorf("left attached: %v", ids)
		}
		if pins, _ := filepath.Glob(cfg.Pins.Dir + "/*/*"); len(pins) > 0 {
			t.Errorf("left pinned: %v", pins)
		}
	})
}

// Programs of others stay attached, and run after ours.
func TestDeviceLeavesForeignPrograms(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		d := cfg.Target.(Device)
		others := newCounters(t, 9)
		p, err := loadCounter("foreign", 9, others.count)
		must(t, err)
		defer p.Close()
		in := testHooks[1]
		if d.TCX {
			l, err := link.AttachTCX(link.TCXOptions{Interface: d.Index, Program: p, Attach: in.Attach})
			must(t, err)
			defer func() { must(t, errors.Join(l.Detach(), l.Close())) }() // at once: a process that is being forked may have it, too
		} else {
			s := openDevice{d}
			must(t, netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: d.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}))
			f := &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: d.Index, Parent: s.parent(in), Priority: 5, Handle: 1, Protocol: unix.ETH_P_ALL}, Fd: p.FD(), Name: "foreign", DirectAction: true}
			must(t, netlink.FilterAdd(f))
			defer netlink.FilterDel(f)
		}
		id, err := programID(p)
		must(t, err)
		must(t, bpf.EnsureDir(cfg.Pins.Dir)) // the failure has removed it
		must(t, attach(t, cfg).Commit())
		s := openDevice{d}
		ids, err := s.programs(in)
		must(t, err)
		if len(ids) != 2 || ids[1] != id {
			t.Errorf("attached %v, want the foreign %d last", ids, id)
		}
		ping(t)
		lab.Await(t, "the other's program runs", func() bool { return others.seen(t) > 0 })
		must(t, Detach(cfg))
		if ids, err = s.programs(in); err != nil || !slices.Equal(ids, []ebpf.ProgramID{id}) {
			t.Errorf("%v are attached after a removal, want %d; %v", ids, id, err)
		}
	})
}

// Somebody else's filter has our priority and handle.
func TestDeviceConflict(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		d := cfg.Target.(Device)
		if d.TCX {
			return // links have no places to be taken
		}
		others := newCounters(t, 9)
		p, err := loadCounter("foreign", 9, others.count)
		must(t, err)
		defer p.Close()
		s, in := openDevice{d}, bpf.Hook{Name: "other", Attach: ebpf.AttachTCXIngress}
		_, err = s.attach(in, p, nil)
		must(t, err)
		if _, err := Attach(cfg); !errors.Is(err, ErrConflict) {
			t.Errorf("%v, want ErrConflict", err)
		}
		must(t, s.detach(in, p))
	})
}

func hasTCX() bool {
	const loopback = 1
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	return err == nil
}

// A device that is gone has nothing attached, and what is pinned for it goes.
func TestDetachOfADeviceThatIsGone(t *testing.T) {
	l := lab.New(t)
	must(t, l.Do(func() error {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "fhtest0"}, PeerName: "fhtest1"}))
		dev, err := netlink.LinkByName("fhtest0")
		must(t, err)
		cfg := Config{Pins: bpf.PinsBelow(l.BPFFS), Target: Device{Name: "fhtest0", Index: dev.Attrs().Index, TCX: hasTCX()}, Programs: newCounters(t, 1)}
		must(t, bpf.EnsureDir(cfg.Pins.Dir))
		a := attach(t, cfg)
		must(t, a.Commit())
		must(t, a.Close())
		must(t, netlink.LinkDel(dev))
		must(t, Detach(cfg))
		if pins, _ := filepath.Glob(cfg.Pins.Dir + "/*/*"); len(pins) > 0 {
			t.Errorf("left pinned: %v", fmt.Sprint(pins))
		}
		return nil
	}))
}
