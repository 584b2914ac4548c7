package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
)

// ErrNoTable says that there is nothing to take over.
var ErrNoTable = errors.New("the init stage has not run here: run `firsthop init` first")

// Config is what a Dataplane needs. The paths are as this process reaches them.
type Config struct {
	Log *slog.Logger
	mounts.Places

	Scope               natinit.Scope
	UDP                 bool
	Forbid              []string
	IgnoreKernelVersion bool

	// Journal calls its argument with the instance's lock taken, and with the
	// journal of what a reboot undoes; nil where that can't be used.
	Journal func(context.Context, func(*instance.Journal) error) error
}

// Dataplane is what is in the kernel: the table, and the programs at the cgroup.
type Dataplane struct {
	cfg      Config
	pins     bpf.Pins
	maps     *bpf.Maps
	store    *nat.Kernel
	features bpf.Features
	links    objects.Links // of the machine
	balancer bpf.Balancer
	cookies  *natinit.Cookies // of network namespaces
	cgroup   mounts.Cgroup2
	proc     string
	log      *slog.Logger
	hold     *instance.Hold // of the table; nil until it was taken over

	mu      sync.Mutex               // of maps, store, hold, and cgroup, once the runtime runs
	present atomic.Pointer[bpf.Maps] // maps, for who must not wait while the table grows or programs are attached
	former  []*bpf.Maps              // that the table has grown out of

	usage struct { // of the maps of sockets
		sync.Mutex
		list []bpf.MapUsage
		at   time.Time
	}

	seen seen // what is attached and pinned, for the guard

	limit func() uint64 // of this process's memory; 0: there is none. Tests have their own
}

// Find looks at what the init stage has made, and whether this runtime
// can take it over. It changes nothing.
func Find(cfg Config) (*Dataplane, error) {
	kc := kernel.Config{Root: cfg.HostRoot, IgnoreVersion: cfg.IgnoreKernelVersion, Forbid: cfg.Forbid}
	rep, err := kernel.Check(kc)
	if err == nil {
		err = rep.Err()
	}
	if err != nil {
		return nil, err
	}
	b, err := mounts.FindBPFFS(cfg.Given.ForBPFFS())
	if err == nil {
		err = b.Err()
	}
	if errors.Is(err, mounts.ErrAbsent) {
		return nil, fmt.Errorf("%w (%w)", err, ErrNoTable)
	}
	if err != nil {
		return nil, err
	}
	g, err := mounts.FindCgroup2(cfg.Given.ForCgroup())
	if err == nil {
		err = g.Err()
	}
	if err != nil {
		return nil, err
	}
	d := &Dataplane{cfg: cfg, pins: bpf.PinsBelow(b.Path), features: rep.Features(), links: kc.Links(), cgroup: g, proc: cfg.Proc, log: cfg.Log, limit: memoryLimit}
	d.cookies = natinit.NewCookies(natinit.CookiesConfig{
		Features: d.features, NoOption: slices.Contains(cfg.Forbid, kernel.FeatureSONetnsCookie),
		Cgroups: func() ([]string, error) { return mounts.OwnCgroups(g.Path) },
	})
	if err := d.find(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// find is the rest of Find: what has to be closed.
func (d *Dataplane) find() (err error) {
	d.balancer, err = natinit.NewBalancer(d.cfg.Scope, d.cfg.UDP, d.features, d.cfg.OtherNetwork(), func() (uint64, error) {
		cookie, err := d.cookies.Cookie()
		if err != nil {
			d.log.Warn("node ports are not served on loopback addresses: which network namespace is the host's is not known", "err", err)
		}
		return cookie, err
	})
	if err != nil {
		return err
	}
	if err := bpf.CheckMaps(d.pins); err != nil {
		return err
	}
	if err := attach.CheckAttach(d.attachConfig(nil)); err != nil {
		return err
	}
	if err := instance.TableFree(d.pins.Dir); err != nil {
		return err
	}
	if d.maps, err = natinit.OpenTable(d.pins); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, ErrNoTable)
	}
	if err != nil {
		return err
	}
	d.store = nat.NewKernel(d.maps, d.features)
	d.present.Store(d.maps)
	return nil
}

// lockWait bounds how long the runtime waits for an init stage that is at work.
const lockWait = 30 * time.Second

// Lock takes the table's lock: that of the bpffs that the table is on, mounted or not.
func (d *Dataplane) Lock(ctx context.Context) (release func() error, err error) {
	root := filepath.Dir(d.pins.Dir)
	d.mu.Lock()
	if d.hold != nil {
		root = d.hold.Root()
	}
	d.mu.Unlock()
	l, err := instance.LockTable(ctx, root)
	if err != nil {
		return nil, err
	}
	return l.Release, nil
}

// locked calls do with the locks that a change of pins and programs takes: the
// instance's, and then the table's.
func (d *Dataplane) locked(ctx context.Context, do func(*instance.Journal) error) error {
	return d.cfg.Journal(ctx, func(j *instance.Journal) (err error) {
		release, err := d.Lock(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, release()) }()
		return do(j)
	})
}

// TakeOver adopts the table that is there, with the maps that a former version
// did not have, and attaches the programs of this one. On an error all is as it was.
func (d *Dataplane) TakeOver(ctx context.Context) error {
	return d.locked(ctx, func(j *instance.Journal) error {
		found, err := natinit.OpenTable(d.pins) // an uninstall may have been at work until now
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: %w", err, ErrNoTable)
		}
		if err != nil {
			return err
		}
		if err := found.Close(); err != nil {
			return err
		}
		hold, err := instance.HoldTable(d.pins.Dir)
		if err != nil {
			return err
		}
		if err := d.adopt(j); err != nil {
			return errors.Join(err, hold.Release())
		}
		d.mu.Lock()
		d.hold = hold
		d.mu.Unlock()
		d.look()
		return nil
	})
}

func (d *Dataplane) adopt(j *instance.Journal) error {
	seeded, err := natinit.Seed(natinit.SeedConfig{Pins: d.pins, Features: d.features})
	if err != nil {
		return err
	}
	found := d.maps
	if err := d.recoverSockets(j, seeded); err != nil {
		return errors.Join(err, seeded.Rollback(), seeded.Close())
	}
	d.mu.Lock()
	d.maps, d.store = seeded.Maps, nat.NewKernel(seeded.Maps, d.features)
	d.mu.Unlock()
	d.present.Store(d.maps)
	if found != nil {
		d.former = append(d.former, found)
	}
	if err := d.attach(j); err != nil {
		return errors.Join(err, seeded.Rollback())
	}
	if err := seeded.Commit(); err != nil {
		d.log.Warn("left-over backends are still in the table", "err", err)
	}
	if err := seeded.Release(); err != nil {
		d.log.Warn("a table that was grown out of is still open", "err", err)
	}
	if err := d.maps.AbsorbOverflow(d.features); err != nil {
		d.log.Warn("UDP sockets of before may be forgotten when many others come", "err", err)
	}
	return nil
}

// recoverSockets ends what a growth that was killed has begun.
func (d *Dataplane) recoverSockets(j *instance.Journal, seeded *natinit.Seeded) error {
	programs := d.programsOf(seeded.Maps)
	cfg := d.attachConfig(j)
	cfg.Programs = programs
	err := seeded.Recover(cfg, programs)
	if seeded.Left != nil {
		d.log.Warn("something of a growth that was killed was left behind", "err", seeded.Left)
	}
	return err
}

func (d *Dataplane) programs() attach.Balancer { return d.programsOf(d.maps) }

func (d *Dataplane) programsOf(maps *bpf.Maps) attach.Balancer {
	return attach.Balancer{Balancer: d.balancer, Maps: maps, Features: d.features}
}

func (d *Dataplane) attachConfig(j *instance.Journal) attach.Config {
	return attach.Config{
		Pins: d.usablePins(), Target: attach.Cgroup{Path: d.cgroup.Path, ID: d.cgroup.ID, Links: d.features.Link},
		Programs: d.programs(), Journal: j, Links: d.links, Proc: d.proc,
	}
}

// usablePins are the table's pins: by their place, or, where the bpffs there is
// unmounted or hidden, by the handle that is held of it.
func (d *Dataplane) usablePins() bpf.Pins {
	if d.hold == nil || d.hold.IsAt(d.pins.Dir) {
		return d.pins
	}
	return bpf.Pins{Dir: d.hold.Dir()}
}

// NoteAttached notes what is attached in a journal that lacks it.
func (d *Dataplane) NoteAttached(ctx context.Context) error {
	return d.locked(ctx, func(j *instance.Journal) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.attach(j)
	})
}

// attach ensures that the programs are attached. It changes nothing where all is
// as it should be.
func (d *Dataplane) attach(j *instance.Journal) error {
	a, err := attach.Attach(d.attachConfig(j))
	if err != nil {
		return err
	}
	defer a.Close()
	for _, h := range a.Hooks {
		if h.Change != attach.Kept {
			d.log.Info("attached", "hook", h.Hook, "change", h.Change, "program", h.Program, "note", h.Note)
		}
	}
	if err := a.Commit(); err != nil {
		d.log.Warn("a former program is still attached beside its successor", "err", err)
	}
	held, err := attach.OpenHandles(d.usablePins(), a.Hooks)
	if err != nil {
		return err
	}
	return d.seen.attached(held)
}

// Locked calls its argument with the locks that a change of pins and programs takes, the journal of what a reboot undoes
// (nil where that can't be used), and the table's pins.
func (d *Dataplane) Locked(ctx context.Context, do func(*instance.Journal, bpf.Pins) error) error {
	return d.locked(ctx, func(j *instance.Journal) error {
		d.mu.Lock()
		pins := d.usablePins()
		d.mu.Unlock()
		return do(j, pins)
	})
}

// Links says how the machine's links are listed.
func (d *Dataplane) Links() objects.Links { return d.links }

// Has asks the kernel for a feature.
func (d *Dataplane) Has(feature string) bool {
	return kernel.Ask(kernel.Config{Root: d.cfg.HostRoot, Forbid: d.cfg.Forbid}, feature)
}

// Store is what to write to, until Grow.
func (d *Dataplane) Store() *nat.Kernel { return d.store }

// Maps are those of the table now: Grow and GrowSockets exchange them, but for those of workloads. Any goroutine may call it.
func (d *Dataplane) Maps() *bpf.Maps { return d.present.Load() }

// Features are those of the kernel.
func (d *Dataplane) Features() bpf.Features { return d.features }

// Cookie is that of the host's network namespace.
func (d *Dataplane) Cookie() (uint64, error) { return d.cookies.Cookie() }

// Dir is the table's directory.
func (d *Dataplane) Dir() string { return d.pins.Dir }

// usageInterval is how long counts of the entries of maps are used: a page of metrics does not count them again.
const usageInterval = 30 * time.Second

// SocketMaps tells how full the maps of sockets are, at most half a minute ago. Any goroutine may call it.
func (d *Dataplane) SocketMaps() ([]bpf.MapUsage, error) {
	d.usage.Lock()
	defer d.usage.Unlock()
	if d.usage.list != nil && time.Since(d.usage.at) < usageInterval {
		return d.usage.list, nil
	}
	list, err := d.Maps().Usage(d.features)
	if err != nil {
		return nil, err
	}
	d.usage.list, d.usage.at = list, time.Now()
	return list, nil
}

// Counters is the map that has them now.
func (d *Dataplane) Counters() *ebpf.Map {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.maps.Map(bpf.MapCounter)
}

// APIBackends are what the API service leads to now, under the given addresses.
func (d *Dataplane) APIBackends(vips []netip.AddrPort) ([]netip.AddrPort, error) {
	state, err := d.store.Read()
	if err != nil {
		return nil, err
	}
	var out []netip.AddrPort
	for _, v := range vips {
		backends, _ := state.Resolve(bpf.FrontendKeyOf(v, bpf.TCP))
		out = append(out, backends...)
	}
	return out, nil
}

// IsService reports whether an address is a Service's own in the table.
func (d *Dataplane) IsService(a netip.AddrPort) bool {
	m := d.present.Load()
	return m != nil && natinit.IsService(m, a)
}

// Bypass lets a socket past the programs: no Service may redirect connections to an API server.
func (d *Dataplane) Bypass(network, address string, c syscall.RawConn) error {
	m := d.present.Load()
	if m == nil {
		return nil
	}
	return bpf.NewBypass(m).Control(network, address, c)
}

// DialPast is the way of probes.
func (d *Dataplane) DialPast(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{KeepAlive: -1, Control: d.Bypass}).DialContext(ctx, network, address)
}

// Close closes what is held of it. What is attached continues to serve.
func (d *Dataplane) Close() error {
	errs := []error{d.cookies.Close(), d.seen.close()}
	if d.hold != nil {
		errs = append(errs, d.hold.Release())
	}
	for _, m := range append(d.former, d.maps) {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}
