package attach

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/lab"
)

// counters are trivial programs: each counts the packets that it sees, and leaves them to whatever comes next.
type counters struct {
	version int64
	count   *ebpf.Map
	// translates says that the one at ingress does what a Service's program does, and the other nothing: it counts the
	// datagrams to one port, and sends them to another.
	translates bool
}

var testHooks = []bpf.Hook{{Name: "test_out", Attach: ebpf.AttachTCXEgress}, {Name: "test_in", Attach: ebpf.AttachTCXIngress}}

func newCounters(t testing.TB, version int64) counters {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "fh_test", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	must(t, err)
	t.Cleanup(func() { m.Close() })
	return counters{version: version, count: m}
}

func (c counters) AllHooks() []bpf.Hook { return slices.Clone(testHooks) }
func (c counters) Hooks() []bpf.Hook    { return testHooks }

func (c counters) Load() (map[string]*ebpf.Program, error) {
	progs := map[string]*ebpf.Program{}
	for _, h := range testHooks {
		p, err := loadCounter(h.Program(), c.version, c.count)
		if c.translates {
			p.Close()
			port := servicePort
			if h.Attach == ebpf.AttachTCXEgress {
				port = 0
			}
			p, err = loadTranslator(h.Program(), port, c.version, c.count)
		}
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

// The ports of the stream.
const servicePort, backendPort = 4009, 4010

// loadTranslator loads a program that counts the datagrams to a port, and sends them to backendPort. It is for IPv4 on
// Ethernet.
func loadTranslator(name string, from int, version int64, count *ebpf.Map) (*ebpf.Program, error) {
	const offProto, offPort = 14 + 9, 14 + 20 + 2
	bigEndian := func(port int) int64 { return int64(port>>8 | port&0xff<<8) }
	load := func(off, length int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, off),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, -8),
			asm.Mov.Imm(asm.R4, length),
			asm.FnSkbLoadBytes.Call(),
			asm.JNE.Imm(asm.R0, 0, "next"),
		}
	}
	ins := asm.Instructions{asm.LoadImm(asm.R7, version, asm.DWord), asm.Mov.Reg(asm.R6, asm.R1)}
	ins = append(ins, load(offProto, 1)...)
	ins = append(ins, asm.LoadMem(asm.R1, asm.RFP, -8, asm.Byte), asm.JNE.Imm(asm.R1, unix.IPPROTO_UDP, "next"))
	ins = append(ins, load(offPort, 2)...)
	ins = append(ins,
		asm.LoadMem(asm.R1, asm.RFP, -8, asm.Half), asm.JNE.Imm(asm.R1, int32(bigEndian(from)), "next"),
		asm.StoreImm(asm.RFP, -8, bigEndian(backendPort), asm.Half),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, offPort),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, -8),
		asm.Mov.Imm(asm.R4, 2),
		asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, count.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "next"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("next"),
		asm.Return(),
	)
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "GPL", Instructions: ins})
}

// stream sends datagrams to the service port of loopback until it is ended.
type stream struct {
	client, backend, untranslated net.PacketConn
	end                           chan struct{}
	group                         sync.WaitGroup
	sent, received, missed        atomic.Int64
}

// startStream starts one in the network namespace of the thread.
func startStream(t testing.TB) *stream {
	t.Helper()
	listen := func(port int) net.PacketConn {
		c, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.1:%d", port))
		must(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	s := &stream{client: listen(0), backend: listen(backendPort), untranslated: listen(servicePort), end: make(chan struct{})}
	count := func(c net.PacketConn, n *atomic.Int64) {
		for buf := make([]byte, 16); ; n.Add(1) {
			if _, _, err := c.ReadFrom(buf); err != nil {
				return
			}
		}
	}
	s.group.Go(func() { count(s.backend, &s.received) })
	s.group.Go(func() { count(s.untranslated, &s.missed) })
	s.group.Go(func() {
		to := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: servicePort}
		for {
			select {
			case <-s.end:
				return
			default:
			}
			if _, err := s.client.WriteTo([]byte("x"), to); err == nil {
				s.sent.Add(1)
			}
			if s.sent.Load()-s.received.Load()-s.missed.Load() > 50 { // what the sockets' buffers take
				time.Sleep(time.Millisecond)
			}
		}
	})
	return s
}

// flows waits until some more datagrams have arrived.
func (s *stream) flows(t testing.TB) {
	t.Helper()
	from := s.received.Load() + s.missed.Load()
	lab.Await(t, "datagrams arrive", func() bool { return s.received.Load()+s.missed.Load() > from+100 })
}

// wantOnce ends the stream: each datagram was translated, once, by one of these.
func (s *stream) wantOnce(t testing.TB, by ...counters) {
	t.Helper()
	close(s.end)
	for range 200 {
		if s.received.Load()+s.missed.Load() >= s.sent.Load() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, c := range []net.PacketConn{s.client, s.backend, s.untranslated} {
		c.Close()
	}
	s.group.Wait()
	var translated uint64
	for _, c := range by {
		translated += c.seen(t)
	}
	if sent := s.sent.Load(); s.missed.Load() > 0 || s.received.Load() != sent || translated != uint64(sent) {
		t.Errorf("of %d datagrams %d were translated, %d times, and %d were not", sent, s.received.Load(), translated, s.missed.Load())
	}
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
				must(t, DetachDevices(cfg))
				if ids := attached(t, cfg); len(ids) > 0 {
					t.Errorf("left attached: %v", ids)
				}
				if left := cfg.Journal.Entries(); len(left) > 0 {
					t.Errorf("left in the journal: %v", left)
				}
				if q := openTarget(t, cfg).qdisc; q != "" {
					t.Errorf("left at the device: a qdisc of kind %s", q)
				}
				return nil
			}))
		})
	}
}

// attached are the programs at both hooks.
func attached(t testing.TB, cfg Config) (ids []ebpf.ProgramID) {
	t.Helper()
	for _, h := range testHooks {
		ids = append(ids, attachedTo(t, cfg, h)...)
	}
	return ids
}

// attachedTo are the programs at one hook, in the order in which they run.
func attachedTo(t testing.TB, cfg Config, h bpf.Hook) (ids []ebpf.ProgramID) {
	t.Helper()
	at, err := openTarget(t, cfg).programs(h)
	must(t, err)
	for _, p := range at {
		ids = append(ids, p.id)
	}
	return ids
}

func openTarget(t testing.TB, cfg Config) *openDevice {
	t.Helper()
	s, err := cfg.Target.open(cfg)
	must(t, err)
	return s.(*openDevice)
}

// recorded are the entries of a kind.
func recorded(j *instance.Journal, kind instance.Kind) (targets []string) {
	for _, e := range j.Entries() {
		if e.Kind == kind {
			targets = append(targets, e.Target)
		}
	}
	return targets
}

func wantRecorded(t testing.TB, j *instance.Journal, programs int) {
	t.Helper()
	if is := recorded(j, instance.KindDevice); len(is) != programs {
		t.Errorf("programs in the journal: %q, want %d", is, programs)
	}
}

// pinned are all pins.
func pinned(t testing.TB, cfg Config) []string {
	t.Helper()
	pins, err := filepath.Glob(cfg.Pins.Dir + "/*/*")
	must(t, err)
	return pins
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
		wantRecorded(t, cfg.Journal, 2)

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
			wantRecorded(t, j, 2)
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
		in := testHooks[1]
		other := attachForeign(t, cfg, in, 5, 1)
		must(t, attach(t, cfg).Commit())
		if ids := attachedTo(t, cfg, in); len(ids) != 2 || ids[1] != other.id {
			t.Errorf("attached %v, want the foreign %d last", ids, other.id)
		}
		ping(t)
		lab.Await(t, "the other's program runs", func() bool { return other.count.seen(t) > 0 })
		must(t, Detach(cfg))
		if ids := attachedTo(t, cfg, in); !slices.Equal(ids, []ebpf.ProgramID{other.id}) {
			t.Errorf("%v are attached after a removal, want %d", ids, other.id)
		}
		other.detach(t)
	})
}

// foreign is a program of somebody else's.
type foreign struct {
	id     ebpf.ProgramID
	count  counters
	prog   *ebpf.Program
	link   link.Link
	filter *netlink.BpfFilter
	made   bool // the qdisc
}

// attachForeign attaches a program of somebody else's in the way of the target: by tcx at the head, or by a filter.
func attachForeign(t testing.TB, cfg Config, h bpf.Hook, priority uint16, handle uint32) *foreign {
	t.Helper()
	d := cfg.Target.(Device)
	f := newForeign(t)
	if d.TCX {
		f.byTCX(t, d, h)
		return f
	}
	err := netlink.QdiscAdd(clsactOf(d.Index))
	if f.made = err == nil; !f.made && !errors.Is(err, unix.EEXIST) {
		t.Fatal(err)
	}
	must(t, f.byFilter(d, h, priority, handle, unix.ETH_P_ALL))
	return f
}

func newForeign(t testing.TB) *foreign {
	t.Helper()
	f := &foreign{count: newCounters(t, 9)}
	var err error
	f.prog, err = loadCounter("foreign", 9, f.count.count)
	must(t, err)
	t.Cleanup(func() { f.prog.Close() })
	f.id, err = programID(f.prog)
	must(t, err)
	return f
}

func (f *foreign) byTCX(t testing.TB, d Device, h bpf.Hook) {
	t.Helper()
	var err error
	f.link, err = link.AttachTCX(link.TCXOptions{Interface: d.Index, Program: f.prog, Attach: h.Attach, Anchor: link.Head()})
	must(t, err)
}

func (f *foreign) byFilter(d Device, h bpf.Hook, priority uint16, handle uint32, protocol uint16) error {
	f.filter = &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: d.Index, Parent: parentOf(h), Priority: priority, Handle: handle, Protocol: protocol},
		Fd:          f.prog.FD(), Name: "foreign", DirectAction: true,
	}
	return netlink.FilterAdd(f.filter)
}

func (f *foreign) detach(t testing.TB) {
	t.Helper()
	if f.link != nil {
		must(t, errors.Join(f.link.Detach(), f.link.Close())) // at once: a process that is being forked may have it, too
	}
	if f.filter != nil {
		must(t, netlink.FilterDel(f.filter))
	}
	if f.made {
		must(t, netlink.QdiscDel(clsactOf(f.filter.LinkIndex)))
	}
}

// Somebody else's filter has our priority and handle.
func TestDeviceConflict(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		d := cfg.Target.(Device)
		if d.TCX {
			return // links have no places to be taken
		}
		other := attachForeign(t, cfg, testHooks[1], filterPriority, filterHandles[0])
		if _, err := Attach(cfg); !errors.Is(err, ErrConflict) {
			t.Errorf("%v, want ErrConflict", err)
		}
		must(t, bpf.EnsureDir(cfg.Pins.Dir)) // the failure has removed it
		if ids := attached(t, cfg); !slices.Equal(ids, []ebpf.ProgramID{other.id}) {
			t.Errorf("%v are attached, want the foreign %d alone", ids, other.id)
		}
		other.detach(t)
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

// A firsthop to which tcx is forbidden, and one to which it is allowed again: each packet is translated once, all the time.
func TestDeviceChangesTheWay(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		lab.NeedsLinux(t, 6, 6, "tcx")
		former := newCounters(t, 1)
		former.translates = true
		cfg.Programs = former
		dev := cfg.Target.(Device)
		must(t, openTarget(t, cfg).ensureClsact()) // which loses packets
		first := attach(t, cfg)
		must(t, first.Commit())
		s := startStream(t)
		s.flows(t)

		d := dev
		d.TCX = !d.TCX
		next, changed := former, cfg
		next.version = 2
		changed.Target, changed.Programs = d, next
		rolled := attach(t, changed)
		s.flows(t)
		must(t, rolled.Rollback())
		wantHooks(t, cfg, first, Added) // the former ones are there as they were
		s.flows(t)

		a := attach(t, changed)
		both := attached(t, cfg)
		order := []ebpf.ProgramID{first.Hooks[0].Program, a.Hooks[0].Program, first.Hooks[1].Program, a.Hooks[1].Program}
		if d.TCX { // which runs before all filters
			order = []ebpf.ProgramID{order[1], order[0], order[3], order[2]}
		}
		if !slices.Equal(both, order) {
			t.Errorf("between attach and commit %v are attached, want %v", both, order)
		}
		s.flows(t)
		must(t, a.Commit())
		wantHooks(t, changed, a, Changed)
		if pins := pinned(t, cfg); len(pins) != 2 {
			t.Errorf("pinned: %v", pins)
		}
		s.flows(t)
		again := attach(t, changed)
		wantHooks(t, changed, again, Kept)
		must(t, again.Commit())
		s.wantOnce(t, former) // one map for all
	})
}

// A run was killed between its attach and its commit: both ways are there, and the next run, of either kind, leaves one.
func TestDeviceHasOneWayAfterACrash(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		lab.NeedsLinux(t, 6, 6, "tcx")
		for _, back := range []bool{false, true} {
			must(t, attach(t, cfg).Commit())
			other := cfg
			d := cfg.Target.(Device)
			d.TCX = !d.TCX
			other.Target = d
			must(t, attach(t, other).Close()) // no commit
			if back {
				other = cfg
			}
			a := attach(t, other)
			must(t, a.Commit())
			if ids := attached(t, cfg); len(ids) != 2 || ids[0] != a.Hooks[0].Program || ids[1] != a.Hooks[1].Program || a.Hooks[0].By != best(other.Target) {
				t.Errorf("attached %v, want %+v", ids, a.Hooks)
			}
			must(t, Detach(cfg))
			must(t, bpf.EnsureDir(cfg.Pins.Dir))
		}
	})
}

// What is attached in the way that isn't wanted has lost its pins and its map: the journal alone knows it.
func TestDeviceChangesTheWayOfWhatOnlyTheJournalKnows(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		lab.NeedsLinux(t, 6, 6, "tcx")
		cfg.Programs = unknown{cfg.Programs.(counters)}
		must(t, attach(t, cfg).Commit())
		losePins(t, cfg)
		d := cfg.Target.(Device)
		d.TCX = !d.TCX
		other := cfg
		other.Target = d
		a := attach(t, other)
		must(t, a.Commit())
		if ids := attached(t, cfg); len(ids) != 2 || ids[0] != a.Hooks[0].Program || ids[1] != a.Hooks[1].Program {
			t.Errorf("attached %v, want %+v", ids, a.Hooks)
		}
		must(t, bpf.EnsureDir(cfg.Pins.Dir))
		losePins(t, other) // and by the same way
		a = attach(t, other)
		must(t, a.Commit())
		if ids := attached(t, cfg); len(ids) != 2 || ids[0] != a.Hooks[0].Program || ids[1] != a.Hooks[1].Program {
			t.Errorf("attached %v, want %+v", ids, a.Hooks)
		}
	})
}

// unknown are programs that nobody knows by their maps.
type unknown struct{ counters }

func (u unknown) Inspect(p *ebpf.Program) (Known, error) {
	k, err := u.counters.Inspect(p)
	k.Ours, k.Current = false, false
	return k, err
}

// losePins removes all pins. What they led to stays, as in a bpffs that is mounted elsewhere, until the test ends.
func losePins(t testing.TB, cfg Config) {
	t.Helper()
	hold(t, cfg)
	for _, pin := range pinned(t, cfg) {
		must(t, os.Remove(pin))
	}
}

// hold opens all pinned links until the test ends.
func hold(t testing.TB, cfg Config) {
	t.Helper()
	for _, pin := range pinned(t, cfg) {
		if l, err := link.LoadPinnedLink(pin, nil); err == nil {
			t.Cleanup(func() { l.Close() })
		}
	}
}

// The hook at ingress can't be had, after that at egress was: nothing is left, or the former programs are.
func TestDeviceIsAllOrNothing(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		d := cfg.Target.(Device)
		if d.TCX {
			return // links have no places to be taken
		}
		f := newForeign(t)
		must(t, netlink.QdiscAdd(clsactOf(d.Index)))
		must(t, f.byFilter(d, testHooks[1], filterPriority, 7, unix.ETH_P_IP))
		_, err := Attach(cfg)
		if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "filter bpf, priority 1, handle 0x7") {
			t.Errorf("%v, want ErrConflict with the filter", err)
		}
		if err := CheckAttach(cfg); !errors.Is(err, ErrConflict) {
			t.Errorf("%v, want ErrConflict beforehand", err)
		}
		if ids, pins := attached(t, cfg), pinned(t, cfg); !slices.Equal(ids, []ebpf.ProgramID{f.id}) || len(pins) > 0 {
			t.Errorf("left attached: %v, pinned: %v", ids, pins)
		}
		f.detach(t)
		must(t, netlink.QdiscDel(clsactOf(d.Index)))
		must(t, bpf.EnsureDir(cfg.Pins.Dir))
		if _, err := Attach(cfg); err != nil {
			t.Error(err)
		}
	})
}

// What a filter of the egress of a qdisc of kind ingress sees is what comes in.
func TestDeviceWithAQdiscOfKindIngress(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		d := cfg.Target.(Device)
		ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: d.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
		must(t, netlink.QdiscAdd(ingress))
		f := newForeign(t)
		must(t, f.byFilter(d, testHooks[1], 5, 7, unix.ETH_P_ALL))
		if d.TCX { // nothing that is in our way
			a := attach(t, cfg)
			must(t, a.Commit())
			if ids := attached(t, cfg); !slices.Equal(ids, []ebpf.ProgramID{a.Hooks[0].Program, a.Hooks[1].Program, f.id}) {
				t.Errorf("attached %v", ids)
			}
			must(t, Detach(cfg))
		} else if _, err := Attach(cfg); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "kind ingress") {
			t.Errorf("%v, want ErrConflict", err)
		}
		if ids := attached(t, cfg); !slices.Equal(ids, []ebpf.ProgramID{f.id}) {
			t.Errorf("attached %v, want the foreign %d", ids, f.id)
		}
		f.detach(t)
		must(t, netlink.QdiscDel(ingress))
	})
}

// A qdisc that shares its filters by a block takes none by its device.
func TestDeviceWithASharedBlock(t *testing.T) {
	onDevice(t, func(t *testing.T, cfg Config) {
		d := cfg.Target.(Device)
		const ingressBlock, egressBlock = 13, 14 // TCA_INGRESS_BLOCK, TCA_EGRESS_BLOCK
		req := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
		req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(d.Index), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT})
		req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("clsact")))
		req.AddData(nl.NewRtAttr(ingressBlock, nl.Uint32Attr(22)))
		req.AddData(nl.NewRtAttr(egressBlock, nl.Uint32Attr(23)))
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		must(t, err)
		a, err := Attach(cfg)
		if d.TCX {
			must(t, errors.Join(err, a.Commit(), a.Close()))
		} else if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "block") {
			t.Errorf("%v, want ErrConflict", err)
		}
		must(t, Detach(cfg))
		must(t, netlink.QdiscDel(clsactOf(d.Index)))
	})
}
