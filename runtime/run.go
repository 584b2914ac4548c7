package runtime

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/kubeproxy"
	"github.com/firsthop/firsthop/runtime/apihealth"
	"github.com/firsthop/firsthop/runtime/metrics"
	"github.com/firsthop/firsthop/runtime/netns"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/sockets"
	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/runtime/workloads"
	"github.com/firsthop/firsthop/runtime/writer"
)

// Run serves until ctx ends, and then leaves the dataplane as it is. An error
// is for what keeps it from starting; what fails later is logged and tried
// again, indefinitely.
//
// All that can be known without changing anything is known before anything is
// changed: a runtime that cannot start leaves no trace.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Notify == nil {
		cfg.Notify = func(string) {}
	}
	if err := instance.RuntimeAbsent(cfg.RunDir); err != nil {
		return oneRuntime(err)
	}
	d, err := findDataplane(&cfg)
	if err != nil {
		return err
	}
	defer d.close()
	r, err := newRun(&cfg, d)
	if err != nil {
		return err
	}
	defer r.writer.Close()
	if err := r.takeOver(ctx); err != nil {
		return err
	}
	defer r.instance.unlock()
	defer r.leave()
	cfg.Notify("READY=1\nSTATUS=serving what the table holds; waiting for the API")
	cfg.Log.Info("took over", "table", d.pins.Dir, "cgroup", d.cgroup.HostPath, "api", r.adopted)
	return r.run(ctx)
}

// takeOver is where a start begins to change things: the run directory, the
// table, the programs.
func (r *run) takeOver(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	if err := r.instance.lock(ctx, r.cfg); err != nil {
		return err
	}
	if err := r.data.takeOver(ctx); err != nil {
		r.instance.unlock()
		return err
	}
	r.writer.SetStore(r.data.store)
	r.followPods()
	r.endSockets()
	return nil
}

// leave has addresses that no Service has left alone: who serves after this
// runtime, a kube-proxy say, knows of Services that it will not. A killed one
// leaves them refused.
func (r *run) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	if err := r.writer.LeaveServiceRange(ctx); err != nil {
		r.cfg.Log.Warn("addresses that no Service has stay refused", "err", err)
	}
}

// run is the runtime's parts, put together.
type run struct {
	cfg     *Config
	data    *dataplane
	writer  *writer.Writer
	engine  *engine
	monitor *apihealth.Monitor
	dialer  *apihealth.Dialer
	watcher *watch.Watcher
	adopted []netip.AddrPort // what the API service led to

	workloads *workloads.Reconciler
	sockets   *sockets.Destroyer
	clients   watch.Clients
	outside   *outside
	instance  runtimeLock
}

func newRun(cfg *Config, d *dataplane) (*run, error) {
	r := &run{cfg: cfg, data: d}
	r.writer = writer.New(writer.Config{
		Store: d.store, Log: cfg.Log, Lock: d.lock,
		Room: func() { r.engine.poke() },
	})
	r.engine = newEngine(cfg.Log, r.writer, cfg.NodeName, cfg.NodePorts)
	r.engine.serviceRange = newServiceRange(cfg.ServiceCIDRs)
	r.engine.node.DenyExternal = cfg.DenyNodeExternalIPs
	r.engine.grow = func(ctx context.Context, short writer.Short) error {
		store, err := d.grow(ctx, short)
		if err != nil {
			return err
		}
		r.writer.SetStore(store)
		return nil
	}
	if cfg.Written != nil {
		r.engine.written = sync.OnceFunc(cfg.Written)
	}
	if err := r.connect(); err != nil {
		r.writer.Close()
		return nil, err
	}
	r.outside = newOutside(r)
	return r, nil
}

// namespaces are where pods may be.
func (r *run) namespaces() netns.Config {
	return netns.Config{Proc: r.cfg.Proc, Root: r.cfg.HostRoot}
}

// followPods tells the programs who opted out, and who has which address.
func (r *run) followPods() {
	w := workloads.New(workloads.Config{
		Log: r.cfg.Log, Store: workloads.NewKernel(r.data.maps), Namespaces: r.namespaces(), Programs: r.data.features.NetnsCookie,
		Cookie: r.data.cookies.Cookie,
	})
	r.workloads = w
	r.engine.pod, r.engine.podGone, r.engine.podsSynced = w.SetPod, w.DeletePod, w.SetSynced
	r.engine.nodeAddrs, r.engine.limited = w.SetNode, w.SetRanges
	r.engine.withPods = r.cfg.Pods
}

// fallbackInterval is how often it is looked whether rules of kube-proxy serve.
const fallbackInterval = time.Minute

// followFallback tells whether rules of somebody else serve the API service
// here: only then may a pod opt out. A process that bears kube-proxy's name, or
// answers at its port, serves nothing by that.
func (r *run) followFallback(ctx context.Context) {
	tick := time.NewTicker(fallbackInterval)
	defer tick.Stop()
	misses := 0
	for {
		p, err := kubeproxy.Detect(ctx, kubeproxy.Config{Root: r.cfg.HostRoot, Proc: r.cfg.Proc})
		there := err == nil && servedByRules(p, r.engine.apiAddrs())
		misses++
		if there {
			misses = 0
			r.workloads.SetFallback(true)
		} else if misses > 1 { // it may be replacing its rules
			r.workloads.SetFallback(false)
		}
		if err == nil {
			r.engine.knowFallback()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// servedByRules reports whether rules surely serve all addresses of the API
// service.
func servedByRules(p kubeproxy.Presence, api []netip.AddrPort) bool {
	return len(api) > 0 && !slices.ContainsFunc(api, func(a netip.AddrPort) bool {
		serves, sure := p.Serves(a)
		return !serves || !sure
	})
}

// endSockets ends the sockets of backends that are gone.
func (r *run) endSockets() {
	r.engine.endTCP = r.cfg.EndTCP
	maps := r.data.maps // the maps of sockets never change, whatever the table grows to
	r.sockets = sockets.NewDestroyer(sockets.DestroyerConfig{
		Log: r.cfg.Log,
		Config: func() (sockets.Config, error) {
			return sockets.Config{
				Reverse: maps.Map(bpf.MapReverse), Peer: maps.Map(bpf.MapPeer), Batch: r.data.features.Batch, Namespaces: r.namespaces(),
				TCP: r.cfg.EndTCP,
			}, nil
		},
		StillGone: func(b sockets.Backend) bool { return r.engine.stillGone(Backend{b.Addr, b.Proto}) },
	})
	r.engine.gone = func(gone []Backend) {
		for _, b := range gone {
			r.sockets.Gone(sockets.Backend{Proto: b.Proto, Addr: b.Addr})
		}
	}
}

// connect makes the ways to the API servers.
func (r *run) connect() error {
	id, err := newIdentity(r.cfg)
	if err != nil {
		return err
	}
	vips, err := r.serviceAddrs(id.Host)
	if err != nil {
		return err
	}
	r.engine.vips = vips
	if r.adopted, err = r.data.apiBackends(vips); err != nil {
		return err
	}
	r.engine.adopt(r.adopted)
	r.monitor, err = apihealth.New(apihealth.Config{
		Log: r.cfg.Log, Explicit: r.cfg.Endpoints, Services: vips, Adopted: r.adopted,
		IsService: r.data.isService, Dial: r.data.dialPast,
		Root: r.cfg.HostRoot, StateDir: r.cfg.StateDir, Kubeconfig: r.cfg.Kubeconfig, Pod: r.cfg.Pod, Record: r.cfg.recordSaved,
		OnChange: r.engine.setLive, OnKnown: r.engine.setAPIServers,
		OnLost: func(endpoint netip.AddrPort) { r.dialer.Lost(endpoint) },
	})
	if err != nil {
		return err
	}
	r.engine.apiEndpoints = func(endpoints, vips []netip.AddrPort) {
		r.monitor.SetEndpoints(endpoints)
		r.monitor.SetServices(vips)
	}
	r.dialer, err = apihealth.NewDialer(apihealth.DialerConfig{Log: r.cfg.Log, Monitor: r.monitor, Root: r.cfg.HostRoot, Proven: func() bool { return r.outside.provenNow() }, Peer: r.data.peerOf, Past: r.data.past})
	if err != nil {
		return err
	}
	rc, err := id.dialBy(r.dialer.DialContext)
	if err != nil {
		return err
	}
	if r.clients, err = watch.NewClients(rc); err != nil {
		return err
	}
	r.watcher = watch.New(watch.Config{
		Clients: r.clients, NodeName: r.cfg.NodeName, Log: r.cfg.Log, Pods: r.cfg.Pods, CIDRs: r.cfg.ServiceCIDRs == nil, Handle: r.engine.handle, OnUseless: r.dialer.Leave,
		Stripper: &services.Stripper{Annotations: []string{workloads.Annotation, metrics.TriggerAnnotation}},
	})
	return nil
}

func (r *run) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	group.Go(func() {
		if err := r.monitor.Run(ctx); err != nil && ctx.Err() == nil {
			cancel(err)
		}
	})
	group.Go(func() { r.watcher.Run(ctx) })
	group.Go(func() { followHostAddrs(ctx, r.cfg.Log, r.engine.setHostAddrs) })
	group.Go(func() { r.engine.run(ctx) })
	group.Go(func() { r.engine.verify(ctx) })
	group.Go(func() { r.data.guard(ctx) })
	group.Go(func() { r.keepRunDir(ctx) })
	group.Go(func() { r.followFallback(ctx) })
	group.Go(func() { r.until(ctx, "what pods want", r.workloads.Run) })
	group.Go(func() { r.until(ctx, "sockets of backends that are gone", r.sockets.Run) })
	group.Go(func() { r.engine.watchdog(ctx, r.cfg.Watchdog, stuckAfter, r.cfg.Notify) })
	group.Go(func() { r.serveAdmin(ctx) })
	group.Go(func() { r.outside.serve(ctx) })
	<-ctx.Done()
	r.cfg.Notify("STOPPING=1")
	await(endTime, group.Wait) // client-go sleeps through its back-off
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// endTime bounds how long the end waits for what has not noticed it yet.
const endTime = 3 * time.Second

// await returns when wait does, and after a time in any case.
func await(limit time.Duration, wait func()) {
	ended := make(chan struct{})
	go func() { wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(limit):
	}
}

// until runs a part until ctx ends. One that gives up is missed, and said so;
// the rest goes on.
func (r *run) until(ctx context.Context, what string, part func(context.Context) error) {
	if err := part(ctx); err != nil && ctx.Err() == nil {
		r.cfg.Log.Error("a part of the runtime has given up until the next start", "part", what, "err", err)
	}
}
