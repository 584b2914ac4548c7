package uplinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/runtime/devices"
)

const (
	// verifyInterval is how often it is looked whether the programs are where they belong, and first.
	verifyInterval = 5 * time.Second
	// linger is how long programs stay at a device that is no uplink any more: an address may be gone for a moment, as while it is
	// renewed, and flows with it.
	linger = 30 * time.Second
	// lockWait bounds how long an init stage that is at work is waited for.
	lockWait = 30 * time.Second
)

// Config is what a Keeper needs.
type Config struct {
	Log *slog.Logger
	// Table is the NAT table now: another one after it has grown.
	Table func() *bpf.Maps
	// Locked calls its argument with the instance's locks, the journal of what a reboot undoes (nil: it can't be used), and the
	// table's pins.
	Locked func(context.Context, func(*instance.Journal, bpf.Pins) error) error
	TCX    bool          // the kernel has it, and it is to be used
	Links  objects.Links // of the machine
	Proc   string        // where owners of programs are looked up, for messages
	Flows  uint32        // entries of the map of flows, where it is created
	// Ports are those for masquerade. They are asked for at each look, as sysctls change.
	Ports func() (devices.Ports, error)
	// Before is called once, before programs are attached to the first device: for flows that another proxy has begun. nil: nothing is.
	Before func(context.Context, *bpf.PacketMaps) error
}

// Keeper keeps the programs on the uplinks. Its methods are safe for concurrent use; Run is called once.
type Keeper struct {
	cfg    Config
	wake   chan struct{}
	linger time.Duration // tests have their own

	wanted struct {
		sync.Mutex
		uplinks []devices.Uplink
		left    []devices.Left
		known   bool // they were told
	}

	mu       sync.Mutex // of what follows
	packet   *bpf.PacketMaps
	loaded   map[bpf.Uplink]map[string]*ebpf.Program // for the table that programs were loaded for
	table    *bpf.Maps
	attached map[int]held // by index
	sources  map[bpf.MasqueradeKey]bpf.Address
	order    attach.Keeper
	ready    bool // what a former runtime left is known, and Before has been called

	state struct {
		sync.Mutex
		Status
	}
}

// held is a device that has the programs.
type held struct {
	devices.Uplink
	since time.Time // it is no uplink any more; zero: it is one
}

// New makes a Keeper. It changes nothing.
func New(cfg Config) *Keeper {
	return &Keeper{cfg: cfg, wake: make(chan struct{}, 1), attached: map[int]held{}, linger: linger, sources: map[bpf.MasqueradeKey]bpf.Address{}}
}

// Set says which devices are uplinks now. It does not wait.
func (k *Keeper) Set(uplinks []devices.Uplink, left []devices.Left) {
	k.wanted.Lock()
	k.wanted.uplinks, k.wanted.left, k.wanted.known = uplinks, left, true
	k.wanted.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run keeps the programs on the uplinks until ctx ends, and then leaves them there.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(verifyInterval)
	defer tick.Stop()
	said := ""
	for {
		err := k.Ensure(ctx)
		if ctx.Err() == nil {
			said = k.say(said, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-k.wake:
		case <-tick.C:
		}
	}
}

// say logs what is wrong where that is not what was said last, and returns what is said.
func (k *Keeper) say(said string, err error) string {
	switch {
	case err != nil && err.Error() != said:
		k.cfg.Log.Error("the packet path is not as it should be", "err", err)
		return err.Error()
	case err == nil && said != "":
		k.cfg.Log.Info("the packet path is as it should be again")
		return ""
	}
	return said
}

// Ensure has everything as it should be now: what Run does again and again. Where the table has grown, call it before anything
// is written to the new one: until then, programs at uplinks read the former.
func (k *Keeper) Ensure(ctx context.Context) error {
	k.wanted.Lock()
	uplinks, left, known := k.wanted.uplinks, k.wanted.left, k.wanted.known
	k.wanted.Unlock()
	if !known {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	st := Status{Left: left, looked: true}
	err := k.cfg.Locked(ctx, func(j *instance.Journal, pins bpf.Pins) error {
		if err := k.prepare(ctx, j, pins); err != nil {
			return err
		}
		var errs []error
		errs = append(errs, k.writePorts(&st), k.writeSources(uplinks), k.removeOthers(j, pins, uplinks))
		for _, u := range uplinks {
			errs = append(errs, k.attach(j, pins, u, &st))
		}
		return errors.Join(errs...)
	})
	st.Error = err
	k.setStatus(st)
	return err
}

// prepare makes the maps, and has programs for the table that is there.
func (k *Keeper) prepare(ctx context.Context, j *instance.Journal, pins bpf.Pins) error {
	if k.packet == nil {
		packet, err := bpf.EnsurePacketMaps(pins, k.cfg.Flows)
		if err != nil {
			return fmt.Errorf("make the maps of the packet path: %w", err)
		}
		k.packet = packet
		if err := k.readSources(); err != nil {
			k.packet = nil
			return errors.Join(err, packet.Close())
		}
	}
	repinned, err := k.packet.Repin(pins)
	if len(repinned) > 0 {
		k.cfg.Log.Warn("pins of maps of the packet path were gone, and are there again", "maps", repinned)
	}
	if err != nil {
		return err
	}
	if table := k.cfg.Table(); table != k.table {
		k.unload()
		k.table = table
	}
	if k.ready {
		return nil
	}
	if err := k.adopt(j, pins); err != nil {
		return err
	}
	if k.cfg.Before != nil {
		if err := k.cfg.Before(ctx, k.packet); err != nil {
			return fmt.Errorf("look for flows of another service proxy: %w", err)
		}
	}
	k.ready = true
	return nil
}

// adopt looks where a former runtime has attached programs, and cleans up after devices that went since.
func (k *Keeper) adopt(j *instance.Journal, pins bpf.Pins) error {
	cfg := k.attachConfig(j, pins, devices.Uplink{})
	if _, err := attach.DetachGone(cfg); err != nil {
		return fmt.Errorf("clean up after devices that are gone: %w", err)
	}
	found, err := attach.InspectDevices(cfg)
	if err != nil {
		return fmt.Errorf("look where programs are attached: %w", err)
	}
	for _, d := range found {
		if len(d.Hooks) > 0 {
			k.attached[d.Index] = held{Uplink: devices.Uplink{Name: d.Device, Index: d.Index}}
		}
	}
	return nil
}

// programs are those of a kind of devices, loaded once.
func (k *Keeper) programs(u bpf.Uplink) attach.Uplink {
	return attach.Uplink{Uplink: u, Table: k.table, Packet: k.packet, Shared: func() (map[string]*ebpf.Program, error) {
		if k.loaded[u] == nil {
			progs, err := u.Load(k.table, k.packet)
			if err != nil {
				return nil, err
			}
			if k.loaded == nil {
				k.loaded = map[bpf.Uplink]map[string]*ebpf.Program{}
			}
			k.loaded[u] = progs
		}
		return clones(k.loaded[u])
	}}
}

func clones(progs map[string]*ebpf.Program) (map[string]*ebpf.Program, error) {
	out := map[string]*ebpf.Program{}
	for hook, p := range progs {
		c, err := p.Clone()
		if err != nil {
			for _, c := range out {
				c.Close()
			}
			return nil, fmt.Errorf("open program of %s again: %w", hook, err)
		}
		out[hook] = c
	}
	return out, nil
}

func (k *Keeper) unload() {
	for _, progs := range k.loaded {
		for _, p := range progs {
			p.Close()
		}
	}
	k.loaded = nil
}

func (k *Keeper) attachConfig(j *instance.Journal, pins bpf.Pins, u devices.Uplink) attach.Config {
	return attach.Config{
		Pins: pins, Target: attach.Device{Name: u.Name, Index: u.Index, TCX: k.cfg.TCX}, Programs: k.programs(bpf.Uplink{L3: u.L3}),
		Journal: j, Links: k.cfg.Links, Proc: k.cfg.Proc,
	}
}

// attach has the programs at one device, before those of others.
func (k *Keeper) attach(j *instance.Journal, pins bpf.Pins, u devices.Uplink, st *Status) error {
	d := Device{Name: u.Name, Index: u.Index, L3: u.L3, Why: u.Why}
	cfg := k.attachConfig(j, pins, u)
	a, err := attach.Attach(cfg)
	if err == nil {
		d.Attached, d.By = !a.Gone, byOf(a.Hooks)
		for _, h := range a.Hooks {
			if h.Change != attach.Kept {
				k.cfg.Log.Info("attached", "device", u.Name, "hook", h.Hook, "by", h.By, "change", h.Change, "program", h.Program, "note", h.Note)
			}
		}
		err = errors.Join(a.Commit(), a.Close())
	}
	if err == nil {
		err = k.putFirst(cfg, u, &d)
	}
	if err != nil {
		err = fmt.Errorf("device %s: %w", u.Name, err)
	} else {
		k.attached[u.Index] = held{Uplink: u}
	}
	d.Error = err
	st.Devices = append(st.Devices, d)
	return err
}

// putFirst has ours before the programs of others.
func (k *Keeper) putFirst(cfg attach.Config, u devices.Uplink, d *Device) error {
	// The kernel does not take a program twice at a hook, so they are loaded anew.
	cfg.Programs = attach.Uplink{Uplink: bpf.Uplink{L3: u.L3}, Table: k.table, Packet: k.packet}
	r, err := k.order.Restore(cfg)
	for _, p := range r.Found {
		for _, other := range p.Ahead {
			d.Ahead = append(d.Ahead, p.Hook+": "+other.String())
		}
	}
	if len(r.Hooks) > 0 {
		k.cfg.Log.Warn("programs of others came before ours, which are the first again", "device", u.Name, "were", d.Ahead)
		d.Ahead = nil
	}
	return err
}

func byOf(hooks []attach.Result) attach.By {
	if len(hooks) == 0 {
		return ""
	}
	return hooks[0].By
}

// removeOthers detaches from devices that have been no uplinks for a while.
func (k *Keeper) removeOthers(j *instance.Journal, pins bpf.Pins, uplinks []devices.Uplink) error {
	var errs []error
	for index, u := range k.attached {
		if slices.ContainsFunc(uplinks, func(w devices.Uplink) bool { return w.Index == index }) {
			continue
		}
		if u.since.IsZero() {
			u.since = time.Now()
			k.attached[index] = u
		}
		if time.Since(u.since) < k.linger {
			continue
		}
		if err := attach.Detach(k.attachConfig(j, pins, u.Uplink)); err != nil {
			errs = append(errs, fmt.Errorf("detach from device %s, which is no uplink any more: %w", u.Name, err))
			continue
		}
		delete(k.attached, index)
		k.cfg.Log.Info("detached: the device is no uplink any more", "device", u.Name)
	}
	return errors.Join(errs...)
}

// Packet are the maps of the packet path; nil before Run has made them. They stay open until Close.
func (k *Keeper) Packet() *bpf.PacketMaps {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.packet
}

// Close closes handles. What is attached continues to serve.
func (k *Keeper) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.unload()
	if k.packet == nil {
		return nil
	}
	err := k.packet.Close()
	k.packet = nil
	return err
}
