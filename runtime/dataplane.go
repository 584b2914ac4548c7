package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/instance"
)

// ErrNoTable says that there is nothing to take over.
var ErrNoTable = errors.New("the init stage has not run here: run `firsthop init` first")

// dataplane is what is in the kernel: the table, and the programs at the cgroup.
type dataplane struct {
	pins     bpf.Pins
	bpffs    string
	maps     *bpf.Maps
	store    *nat.Kernel
	features bpf.Features
	links    objects.Links // of the machine
	balancer bpf.Balancer
	cookies  *natinit.Cookies // of network namespaces
	cgroup   mounts.Cgroup2
	proc     string
	log      *slog.Logger

	mu      sync.Mutex               // of maps and store, once the runtime runs
	present atomic.Pointer[bpf.Maps] // maps, for who must not wait while the table grows or programs are attached
	former  []*bpf.Maps              // that the table has grown out of
}

// openDataplane takes over what the init stage has made. What of it is no longer
// there (a pin, an attachment) or not of this version is made good.
func openDataplane(ctx context.Context, cfg *Config) (*dataplane, error) {
	kc := kernel.Config{Root: cfg.HostRoot, IgnoreVersion: cfg.IgnoreKernelVersion, Forbid: cfg.Forbid}
	rep, err := kernel.Check(kc)
	if err == nil {
		err = rep.Err()
	}
	if err != nil {
		return nil, err
	}
	b, err := mounts.FindBPFFS(mounts.Config{Root: cfg.Root, Path: cfg.BPFFS, Explicit: cfg.BPFFS != "", RunDir: cfg.RunDir})
	if err == nil {
		err = b.Err()
	}
	if errors.Is(err, mounts.ErrAbsent) {
		return nil, fmt.Errorf("%w (%w)", err, ErrNoTable)
	}
	if err != nil {
		return nil, err
	}
	g, err := mounts.FindCgroup2(mounts.Config{Root: cfg.Root, Path: cfg.Cgroup, Explicit: cfg.Cgroup != "", RunDir: cfg.RunDir})
	if err == nil {
		err = g.Err()
	}
	if err != nil {
		return nil, err
	}
	d := &dataplane{pins: bpf.PinsBelow(b.Path), bpffs: b.Path, features: rep.Features(), links: kc.Links(), cgroup: g, proc: cfg.Proc, log: cfg.Log}
	d.cookies = natinit.NewCookies(natinit.CookiesConfig{
		Features: d.features, NoOption: slices.Contains(cfg.Forbid, kernel.FeatureSONetnsCookie),
		Cgroups: func() ([]string, error) { return mounts.OwnCgroups(g.Path) },
	})
	if err := d.open(ctx, cfg); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// open is the rest of openDataplane: what has to be closed.
func (d *dataplane) open(ctx context.Context, cfg *Config) (err error) {
	d.balancer, err = natinit.NewBalancer(cfg.Scope, cfg.UDP, d.features, elsewhere(cfg), func() (uint64, error) {
		cookie, err := d.cookies.Cookie()
		if err != nil {
			d.log.Warn("node ports are not served on loopback addresses: which network namespace is the host's is not known", "err", err)
		}
		return cookie, err
	})
	if err != nil {
		return err
	}
	release, err := d.lock(ctx)
	if err != nil {
		return err
	}
	return errors.Join(d.adopt(), release())
}

// elsewhere reports whether the node's instance runs in another network
// namespace than the host's first process, as far as that can be seen.
func elsewhere(cfg *Config) bool {
	if cfg.BPFFS != "" || cfg.Cgroup != "" {
		return false
	}
	var host, ours unix.Stat_t
	err := errors.Join(unix.Stat(cfg.Proc+"/1/ns/net", &host), unix.Stat("/proc/thread-self/ns/net", &ours))
	return err == nil && host.Ino != ours.Ino
}

// lock takes the table's lock.
func (d *dataplane) lock(ctx context.Context) (release func() error, err error) {
	l, err := instance.LockTable(ctx, d.bpffs)
	if err != nil {
		return nil, err
	}
	return l.Release, nil
}

// adopt opens the table that is there, with the maps that a former version
// didn't have, and attaches the programs of this one.
func (d *dataplane) adopt() error {
	if _, err := os.Stat(d.pins.Map(bpf.MapMeta)); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("no NAT table at %s: %w", d.pins.Dir, ErrNoTable)
	}
	seeded, err := natinit.Seed(natinit.SeedConfig{Pins: d.pins, Features: d.features})
	if err != nil {
		return err
	}
	if err := seeded.Commit(); err != nil {
		d.log.Warn("left-over backends are still in the table", "err", err)
	}
	d.maps, d.store = seeded.Maps, nat.NewKernel(seeded.Maps, d.features)
	d.present.Store(d.maps)
	return d.attach()
}

func (d *dataplane) attachConfig() natinit.AttachConfig {
	return natinit.AttachConfig{
		Pins: d.pins, Maps: d.maps, Cgroup: d.cgroup.Path, CgroupID: d.cgroup.ID,
		Features: d.features, Links: d.links, Balancer: d.balancer, Proc: d.proc,
	}
}

// attach makes sure of the programs. It changes nothing where all is as it should be.
func (d *dataplane) attach() error {
	a, err := natinit.Attach(d.attachConfig())
	if err != nil {
		return err
	}
	defer a.Close()
	for _, h := range a.Hooks {
		if h.Change != natinit.Kept {
			d.log.Info("attached", "hook", h.Hook, "change", h.Change, "program", h.Program, "note", h.Note)
		}
	}
	if err := a.Commit(); err != nil {
		d.log.Warn("a former program is still attached beside its successor", "err", err)
	}
	return nil
}

// attachInterval is how often it is made sure that the programs are attached.
const attachInterval = 30 * time.Second

// guard makes sure of the attachment until ctx ends: others may detach what they
// don't know.
func (d *dataplane) guard(ctx context.Context) {
	tick := time.NewTicker(attachInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := d.ensure(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("the programs could not be made sure of", "err", err)
		}
	}
}

func (d *dataplane) ensure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	release, err := d.lock(ctx)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(d.attach(), release())
}

// maxEntries bounds what a map grows to: 4 million entries are 0.5 GB.
const maxEntries = 4 << 20

// grow doubles the table's room, and returns what to write to from now on.
func (d *dataplane) grow(ctx context.Context) (*nat.Kernel, error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	release, err := d.lock(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	double := func(n uint32) uint32 { return min(n*2, maxEntries) }
	sizes := bpf.Sizes{
		Frontends: double(d.maps.Map(bpf.MapFrontend).MaxEntries()),
		Services:  double(d.maps.Services()),
		Backends:  double(d.maps.Map(bpf.MapBackend).MaxEntries()),
	}
	if sizes == (bpf.Sizes{Frontends: d.maps.Map(bpf.MapFrontend).MaxEntries(), Services: d.maps.Services(), Backends: d.maps.Map(bpf.MapBackend).MaxEntries()}) {
		return nil, errors.Join(fmt.Errorf("the table is as large as it may become (%d entries)", maxEntries), release())
	}
	grown, err := natinit.Grow(d.attachConfig(), sizes)
	if err != nil {
		return nil, errors.Join(err, release())
	}
	for _, m := range d.former { // nobody writes to the one before the last any more
		if err := m.ReleaseTable(); err != nil {
			d.log.Warn("a table that was grown out of is still open", "err", err)
		}
	}
	d.former = append(d.former, d.maps) // a write may still be on its way; closed at the end
	d.maps, d.store = grown, nat.NewKernel(grown, d.features)
	d.present.Store(grown)
	d.log.Info("the table has more room", "frontends", sizes.Frontends, "services", sizes.Services, "backends", sizes.Backends)
	return d.store, release()
}

// counters is the map that has them now.
func (d *dataplane) counters() *ebpf.Map {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.maps.Map(bpf.MapCounter)
}

// apiBackends are what the API service leads to now, under the given addresses.
func (d *dataplane) apiBackends(vips []netip.AddrPort) ([]netip.AddrPort, error) {
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

// isService reports whether an address is a Service's own in the table.
func (d *dataplane) isService(a netip.AddrPort) bool {
	m := d.present.Load()
	return m != nil && natinit.IsService(m, a)
}

// past lets a socket past the programs: no Service may redirect connections to an API server.
func (d *dataplane) past(network, address string, c syscall.RawConn) error {
	m := d.present.Load()
	if m == nil {
		return nil
	}
	return bpf.NewBypass(m).Control(network, address, c)
}

// dialPast is the way of probes.
func (d *dataplane) dialPast(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{KeepAlive: -1, Control: d.past}).DialContext(ctx, network, address)
}

func (d *dataplane) close() error {
	errs := []error{d.cookies.Close()}
	for _, m := range append(d.former, d.maps) {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}
