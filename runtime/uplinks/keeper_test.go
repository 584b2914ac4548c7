package uplinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/runtime/devices"
	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

// rig is a Keeper in a lab, whose methods run in the lab's network namespace.
type rig struct {
	*Keeper
	t     testing.TB
	lab   *lab.Lab
	table *bpf.Maps
	cfg   Config
}

func newRig(t testing.TB) *rig {
	t.Helper()
	l := lab.New(t)
	pins := bpf.PinsBelow(l.BPFFS)
	table, err := bpf.EnsureMaps(pins, bpf.Sizes{Frontends: 64, Services: 32, Backends: 64})
	must(t, err)
	t.Cleanup(func() { table.Close() })
	journal := instance.NewJournal(l.RunDir, false)
	r := &rig{t: t, lab: l, table: table, cfg: Config{
		Log: slog.New(slog.DiscardHandler), Table: func() *bpf.Maps { return table }, TCX: kernel.Ask(kernel.Config{}, kernel.FeatureTCX), Flows: 1024,
		Locked: func(_ context.Context, do func(*instance.Journal, bpf.Pins) error) error { return do(journal, pins) },
		Ports:  func() (devices.Ports, error) { return devices.Ports{First: 20000, Last: 29999}, nil },
	}}
	r.restart()
	t.Cleanup(func() { r.Set(nil, nil); must(t, r.ensure()); must(t, r.Close()) })
	return r
}

// restart is a new Keeper, as after a kill of the former.
func (r *rig) restart() {
	if r.Keeper != nil {
		must(r.t, r.Close())
	}
	r.Keeper = New(r.cfg)
	r.linger = 0
}

func (r *rig) ensure() error {
	return r.lab.Do(func() error { return r.Ensure(context.Background()) })
}

// device makes one, and the other end of its cable.
func (r *rig) device(name string) devices.Uplink {
	r.t.Helper()
	var index int
	must(r.t, r.lab.Link(func(nl *netlink.Handle) error {
		d := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}
		if err := nl.LinkAdd(d); err != nil {
			return err
		}
		dev, err := nl.LinkByName(name)
		if err == nil {
			index = dev.Attrs().Index
		}
		return err
	}))
	return devices.Uplink{Name: name, Index: index, Why: "a test", Sources: []devices.Source{
		{Destination: netip.MustParsePrefix("10.0.0.0/8"), Addr: netip.MustParseAddr("192.0.2.1")},
		{Destination: netip.MustParsePrefix("::/0"), Addr: netip.MustParseAddr("2001:db8::1")},
	}}
}

// programs are those at a device by tcx, ingress first.
func (r *rig) programs(u devices.Uplink) (out []ebpf.ProgramID) {
	r.t.Helper()
	must(r.t, r.lab.Do(func() error {
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			found, err := link.QueryPrograms(link.QueryOptions{Target: u.Index, Attach: at})
			if err != nil {
				return err
			}
			for _, p := range found.Programs {
				out = append(out, p.ID)
			}
		}
		return nil
	}))
	return out
}

func (r *rig) source(u devices.Uplink, dst string) netip.Addr {
	r.t.Helper()
	var addr bpf.Address
	p := netip.PrefixFrom(netip.MustParseAddr(dst), netip.MustParseAddr(dst).BitLen())
	err := r.Packet().Map(bpf.MapMasquerade).Lookup(bpf.MasqueradeKeyOf(u.Index, p), &addr)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return netip.Addr{}
	}
	must(r.t, err)
	return addr.Addr()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestKeeperAttachesToUplinksAndLeavesOthers(t *testing.T) {
	r := newRig(t)
	a, b, other := r.device("up0"), r.device("up1"), r.device("other0")
	r.Set([]devices.Uplink{a, b}, nil)
	must(t, r.ensure())
	if st := r.Status(); st.Served() != nil || len(st.Devices) != 2 || !st.Devices[0].Attached || !st.Devices[1].Attached {
		t.Errorf("status is %+v", st)
	}
	onA := r.programs(a)
	if onB := r.programs(b); len(onA) != 2 || len(onB) != 2 || onA[0] != onB[0] || onA[1] != onB[1] {
		t.Errorf("programs are %v and %v, want the same two", onA, onB)
	}
	if got := r.programs(other); len(got) != 0 {
		t.Errorf("a device that is none has %v", got)
	}
	if got := r.source(a, "10.9.9.9"); got != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("source is %v", got)
	}
	if got := r.source(a, "2001:db8:9::1"); got != netip.MustParseAddr("2001:db8::1") {
		t.Errorf("source is %v", got)
	}

	r.Set([]devices.Uplink{b}, []devices.Left{{Name: "up0", Reason: "test"}})
	r.linger = time.Hour
	must(t, r.Packet().Map(bpf.MapMasquerade).Delete(bpf.MasqueradeKeyOf(a.Index, netip.MustParsePrefix("::/0")))) // by somebody else
	must(t, r.ensure())
	if got := r.programs(a); len(got) != 2 {
		t.Errorf("a device that was an uplink until now has %v", got)
	}
	r.linger = 0
	must(t, r.ensure())
	if got := r.programs(a); len(got) != 0 {
		t.Errorf("a former uplink has %v", got)
	}
	if got := r.source(a, "10.9.9.9"); got.IsValid() {
		t.Errorf("source at a former uplink is %v", got)
	}
	if st := r.Status(); len(st.Left) != 1 || len(st.Devices) != 1 {
		t.Errorf("status is %+v", st)
	}
}

func TestKeeperTakesOverFromAKilledOne(t *testing.T) {
	r := newRig(t)
	a := r.device("up0")
	r.Set([]devices.Uplink{a}, nil)
	must(t, r.ensure())
	before := r.programs(a)
	key := bpf.FlowKeyOf(netip.MustParseAddrPort("192.0.2.9:1"), netip.MustParseAddrPort("192.0.2.1:2"), bpf.TCP, bpf.WayIn)
	must(t, r.Packet().Map(bpf.MapConntrack).Put(key, bpf.Flow{Port: bpf.PortOf(1)}))
	r.restart()
	a.Sources = a.Sources[:1]
	r.Set([]devices.Uplink{a}, nil)
	must(t, r.ensure())
	if after := r.programs(a); len(after) != 2 || after[0] != before[0] || after[1] != before[1] {
		t.Errorf("programs are %v, were %v", after, before)
	}
	var f bpf.Flow
	must(t, r.Packet().Map(bpf.MapConntrack).Lookup(key, &f))
	if got := r.source(a, "2001:db8::9"); got.IsValid() {
		t.Errorf("a source of before is left: %v", got)
	}
}

func TestKeeperSurvivesADeviceThatGoes(t *testing.T) {
	r := newRig(t)
	a, b := r.device("up0"), r.device("up1")
	r.Set([]devices.Uplink{a, b}, nil)
	must(t, r.ensure())
	must(t, r.lab.Link(func(nl *netlink.Handle) error {
		dev, err := nl.LinkByName("up0")
		if err != nil {
			return err
		}
		return nl.LinkDel(dev)
	}))
	if err, st := r.ensure(), r.Status(); err == nil && st.Devices[0].Attached { // the follower has not noticed yet
		t.Errorf("status is %+v", st)
	}
	r.Set([]devices.Uplink{b}, nil)
	must(t, r.ensure())
	if got := r.programs(b); len(got) != 2 {
		t.Errorf("the other device has %v", got)
	}
	pins, err := os.ReadDir(bpf.PinsBelow(r.lab.BPFFS).Links())
	must(t, err)
	if len(pins) != 2 {
		t.Errorf("pins are %v", pins)
	}
}

func TestKeeperFollowsATableThatHasGrown(t *testing.T) {
	r := newRig(t)
	a := r.device("up0")
	r.Set([]devices.Uplink{a}, nil)
	must(t, r.ensure())
	before := r.programs(a)
	other := lab.New(t)
	grown, err := bpf.EnsureMaps(bpf.PinsBelow(other.BPFFS), bpf.Sizes{Frontends: 128, Services: 32, Backends: 64})
	must(t, err)
	t.Cleanup(func() { grown.Close() })
	r.table.Close()
	r.cfg.Table = func() *bpf.Maps { return grown }
	r.Keeper.cfg.Table = r.cfg.Table
	must(t, r.ensure())
	after := r.programs(a)
	if len(after) != 2 || after[0] == before[0] {
		t.Errorf("programs are %v, were %v", after, before)
	}
	p, err := ebpf.NewProgramFromID(after[0])
	must(t, err)
	defer p.Close()
	if _, current, err := (bpf.Uplink{}).Inspect(p, grown, r.Packet()); err != nil || !current {
		t.Errorf("the program does not use the table: %v, %v", current, err)
	}
}

// What a killed runtime has attached to a device that is none now is detached by the next.
func TestKeeperDetachesFromFormerUplinksOfAKilledOne(t *testing.T) {
	r := newRig(t)
	a, b := r.device("up0"), r.device("up1")
	r.Set([]devices.Uplink{a, b}, nil)
	must(t, r.ensure())
	r.restart()
	r.Set([]devices.Uplink{b}, nil)
	must(t, r.ensure())
	if got := r.programs(a); len(got) != 0 {
		t.Errorf("a former uplink has %v", got)
	}
	if got := r.programs(b); len(got) != 2 {
		t.Errorf("the other one has %v", got)
	}
}

func TestKeeperPutsProgramsBeforeThoseOfOthers(t *testing.T) {
	lab.NeedsLinux(t, 6, 6, "tcx")
	r := newRig(t)
	a := r.device("up0")
	r.Set([]devices.Uplink{a}, nil)
	must(t, r.ensure())
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	must(t, err)
	defer other.Close()
	var theirs link.Link
	must(t, r.lab.Do(func() (err error) {
		theirs, err = link.AttachTCX(link.TCXOptions{Interface: a.Index, Program: other, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
		return err
	}))
	defer theirs.Close()
	info, err := other.Info()
	must(t, err)
	id, _ := info.ID()
	if got := r.programs(a); got[0] != id {
		t.Fatalf("programs are %v, want %d first", got, id)
	}
	must(t, r.ensure())
	if got := r.programs(a); len(got) != 3 || got[1] != id {
		t.Errorf("programs are %v, want %d after ours", got, id)
	}
}

func TestKeeperPinsMapsAgain(t *testing.T) {
	r := newRig(t)
	r.Set([]devices.Uplink{r.device("up0")}, nil)
	must(t, r.ensure())
	pin := bpf.PinsBelow(r.lab.BPFFS).Map(bpf.MapConntrack)
	must(t, os.Remove(pin))
	must(t, r.ensure())
	again, err := ebpf.LoadPinnedMap(pin, nil)
	must(t, err)
	defer again.Close()
	key := bpf.FlowKeyOf(netip.MustParseAddrPort("192.0.2.9:1"), netip.MustParseAddrPort("192.0.2.1:2"), bpf.TCP, bpf.WayIn)
	must(t, again.Put(key, bpf.Flow{Port: bpf.PortOf(1)}))
	var f bpf.Flow
	must(t, r.Packet().Map(bpf.MapConntrack).Lookup(key, &f))
}

// What is wrong is said once, also where it is looked at every few seconds.
func TestKeeperSaysOnceWhatIsWrong(t *testing.T) {
	r := newRig(t)
	log, said := lab.NewLog()
	r.cfg.Log = log
	broken := r.cfg
	broken.Ports = func() (devices.Ports, error) { return devices.Ports{}, errors.New("no ports") }
	k := New(broken)
	defer k.Close()
	if err := k.Status().Served(); !errors.Is(err, errNotYet) {
		t.Errorf("before the first look: %v", err)
	}
	k.Set(nil, nil)
	text := ""
	must(t, r.lab.Do(func() error {
		for range 3 {
			text = k.say(text, k.Ensure(context.Background()))
		}
		return nil
	}))
	if n := said.Count("ERROR"); n != 1 || text != k.Status().Served().Error() {
		t.Errorf("said %d times, last %q", n, text)
	}
	k.cfg.Ports = r.cfg.Ports
	must(t, r.lab.Do(func() error { text = k.say(text, k.Ensure(context.Background())); return nil }))
	if text != "" || said.Count("INFO") != 1 {
		t.Errorf("after it was repaired: %q\n%s", text, said)
	}
	if err := k.Status().Served(); !errors.Is(err, errNoUplink) {
		t.Errorf("without a device: %v", err)
	}
}

// BenchmarkEnsure is what a look takes that finds all as it should be, every few seconds.
func BenchmarkEnsure(b *testing.B) {
	for _, n := range []int{1, 10} {
		b.Run(fmt.Sprint(n, " devices"), func(b *testing.B) {
			r := newRig(b)
			var uplinks []devices.Uplink
			for i := range n {
				uplinks = append(uplinks, r.device(fmt.Sprint("up", i)))
			}
			r.Set(uplinks, nil)
			must(b, r.ensure())
			for b.Loop() {
				must(b, r.ensure())
			}
		})
	}
}
