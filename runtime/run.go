package runtime

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/kubeproxy"
	"github.com/firsthop/firsthop/runtime/dataplane"
	"github.com/firsthop/firsthop/runtime/watch"
)

// Run serves until ctx ends, and then leaves the dataplane as it is. An error
// is for what keeps it from starting; what fails later is logged and tried
// again, indefinitely.
//
// All that can be known without changing anything is known before anything is
// changed: a runtime that cannot start leaves no trace.
func Run(ctx context.Context, cfg Config) error {
	err := takeOverAndRun(ctx, cfg)
	if errors.Is(err, instance.ErrRuntime) {
		return fmt.Errorf("%w: stop it first, or give this one directories, a bpffs and a cgroup of its own", err)
	}
	return err
}

func takeOverAndRun(ctx context.Context, cfg Config) error {
	if cfg.Notify == nil {
		cfg.Notify = func(string) {}
	}
	if err := instance.RuntimeAbsent(cfg.RunDir); err != nil {
		return err
	}
	d, err := dataplane.Find(cfg.dataplane())
	if err != nil {
		return err
	}
	defer d.Close()
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
	cfg.Log.Info("took over", "table", d.Dir(), "cgroup", d.CgroupPath(), "api", r.adopted)
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
	if err := r.data.TakeOver(ctx); err != nil {
		r.instance.unlock()
		return err
	}
	r.writer.SetStore(r.data.Store())
	r.followPods()
	r.followSockets()
	if r.cfg.PacketPath {
		r.packets = newPacketPath(r)
	} else if err := r.withoutPackets(ctx); err != nil {
		r.cfg.Log.Warn("programs of a packet path that is off now are still attached", "err", err)
	}
	r.subscribe()
	return nil
}

// leave ends the refusal of addresses that no Service has: whatever serves after
// this runtime, such as kube-proxy, knows of Services that it will not. A killed
// runtime leaves them refused.
func (r *run) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	if err := r.writer.ClearServiceRange(ctx); err != nil {
		r.cfg.Log.Warn("addresses that no Service has stay refused", "err", err)
	}
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
	group.Go(func() { watch.FollowHostAddrs(ctx, r.cfg.Log, r.loop.SetHostAddrs) })
	group.Go(func() { r.loop.Run(ctx) })
	group.Go(func() { r.data.Guard(ctx) })
	group.Go(func() { r.keepRunDir(ctx) })
	group.Go(func() { r.followFallback(ctx) })
	group.Go(func() { r.followConntrack(ctx) })
	group.Go(func() { r.until(ctx, "workloads", r.workloads.Run) })
	group.Go(func() { r.until(ctx, "sockets", r.sockets.Run) })
	group.Go(func() { r.packets.serve(ctx) })
	group.Go(func() { r.loop.Liveness().Watchdog(ctx, r.cfg.Watchdog, func() { r.cfg.Notify("WATCHDOG=1") }) })
	group.Go(func() { r.serveAdmin(ctx) })
	group.Go(func() { r.reporter.serve(ctx) })
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

// until runs a component until ctx ends. One that stops is logged; the others continue.
func (r *run) until(ctx context.Context, name string, component func(context.Context) error) {
	if err := component(ctx); err != nil && ctx.Err() == nil {
		r.cfg.Log.Error("component stopped; restart firsthop to resume it", "component", name, "err", err)
	}
}

// fallbackInterval is how often it is checked whether rules of kube-proxy serve.
const fallbackInterval = time.Minute

// followFallback checks whether rules of another service proxy serve the API
// service here: only then may a pod opt out. A process with kube-proxy's name, or
// one that answers at its port, proves nothing.
func (r *run) followFallback(ctx context.Context) {
	tick := time.NewTicker(fallbackInterval)
	defer tick.Stop()
	misses := 0
	detector := kubeproxy.NewDetector(kubeproxy.Config{Root: r.cfg.HostRoot, Proc: r.cfg.Proc})
	for {
		api := r.loop.APIAddrs()
		p, err := detector.Detect(ctx, api...)
		there := err == nil && servedByRules(p, api)
		misses++
		if there {
			misses = 0
			r.workloads.SetFallback(true)
		} else if misses > 1 { // it may be replacing its rules
			r.workloads.SetFallback(false)
		}
		if err == nil {
			r.loop.FallbackKnown()
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
