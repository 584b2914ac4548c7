package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/attach"
)

// haveTCX reports whether the kernel has tcx (Linux 6.6).
var haveTCX = sync.OnceValue(func() bool {
	const loopback = 1
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	return err == nil
})

// programs are those of an uplink, as attach wants them.
type programs struct {
	uplink bpf.Uplink
	maps   *bpf.Maps
	packet *bpf.PacketMaps
	loaded *loaded
	stale  bool // what is attached counts as of another version
}

func (p programs) AllHooks() []bpf.Hook { return bpf.UplinkHooks() }
func (p programs) Hooks() []bpf.Hook    { return bpf.UplinkHooks() }

// Load loads the programs once for all devices: the verifier takes half a second for them.
func (p programs) Load() (map[string]*ebpf.Program, error) {
	if err := p.loaded.load(p); err != nil {
		return nil, err
	}
	clones := map[string]*ebpf.Program{}
	for name, prog := range p.loaded.progs {
		clone, err := prog.Clone()
		if err != nil {
			return nil, err
		}
		clones[name] = clone
	}
	return clones, nil
}

// loaded are programs that devices share.
type loaded struct{ progs map[string]*ebpf.Program }

func (l *loaded) load(p programs) (err error) {
	if l.progs == nil {
		l.progs, err = p.uplink.Load(p.maps, p.packet)
	}
	return err
}

func (l *loaded) close() {
	for _, p := range l.progs {
		p.Close()
	}
	l.progs = nil
}

func (p programs) Inspect(prog *ebpf.Program) (attach.Known, error) {
	l, current, err := p.uplink.Inspect(prog, p.maps, p.packet)
	return attach.Known{ID: l.ID, Name: l.Name, Ours: l.Ours, Current: current && !p.stale}, err
}

// uplinks are the devices of a node that get programs.
type uplinks struct {
	node    machine
	pins    bpf.Pins
	progs   programs
	devices []string
	tcx     bool
}

// newUplinks are those of a bench; nothing is attached yet.
func newUplinks(t testing.TB, b *bench, tcx bool) *uplinks {
	t.Helper()
	u := &uplinks{node: b.node, pins: b.table.pins, progs: programs{maps: b.maps, packet: b.packet, loaded: &loaded{}}, devices: []string{"eth0", "eth1", "flannel.1"}, tcx: tcx}
	t.Cleanup(func() {
		u.progs.loaded.close()
		u.detach(t)
	})
	return u
}

// attach attaches to all uplinks. What is attached stays, if it is of this version and by the same means.
func (u *uplinks) attach(t testing.TB) {
	t.Helper()
	must(t, u.attachAll())
}

func (u *uplinks) attachAll() error {
	return u.each(func(cfg attach.Config) error {
		a, err := attach.Attach(cfg)
		if err != nil {
			return err
		}
		return errors.Join(a.Commit(), a.Close())
	})
}

func (u *uplinks) detach(t testing.TB) {
	t.Helper()
	must(t, u.each(attach.Detach))
}

func (u *uplinks) each(do func(attach.Config) error) error {
	return u.node.Do(func() error {
		for _, name := range u.devices {
			dev, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			d := attach.Device{Name: name, Index: dev.Attrs().Index, TCX: u.tcx}
			if err := do(attach.Config{Pins: u.pins, Target: d, Programs: u.progs}); err != nil {
				return fmt.Errorf("%s: %w", d, err)
			}
		}
		return nil
	})
}

// upgrade exchanges the programs for new ones, as a new version does.
func (u *uplinks) upgrade(t testing.TB) {
	t.Helper()
	u.progs.stale = true
	u.progs.loaded.close()
	u.attach(t)
	u.progs.stale = false
}

// exchangeWays attaches by the other means than before, as after an upgrade of the kernel.
func (u *uplinks) exchangeWays(t testing.TB) {
	t.Helper()
	u.tcx = !u.tcx
	u.progs.loaded.close()
	u.attach(t)
}

// attacherEnv makes this test binary a process that attaches programs, and waits for its end.
const attacherEnv = "FIRSTHOP_WIRE_ATTACH"

// attacher is what that process is told.
type attacher struct {
	BPFFS   string
	Devices []string
	TCX     bool
}

// here is a machine that is the process's own.
type here struct{ machine }

func (here) Do(fn func() error) error { return fn() }

func attachAndWait() int {
	if err := attachHere(); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("attached")
	select {}
}

func attachHere() error {
	var a attacher
	if err := json.Unmarshal([]byte(os.Getenv(attacherEnv)), &a); err != nil {
		return err
	}
	pins := bpf.PinsBelow(a.BPFFS)
	maps, err := bpf.OpenMaps(pins, false)
	if err != nil {
		return err
	}
	packet, err := bpf.OpenPacketMaps(pins, false)
	if err != nil {
		return err
	}
	u := &uplinks{node: here{}, pins: pins, progs: programs{maps: maps, packet: packet, loaded: &loaded{}}, devices: a.Devices, tcx: a.TCX}
	return u.attachAll()
}
