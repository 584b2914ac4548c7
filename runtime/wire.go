package runtime

import (
	"context"
	"net/netip"
	gosync "sync"

	"github.com/cilium/ebpf"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/apihealth"
	"github.com/firsthop/firsthop/runtime/dataplane"
	"github.com/firsthop/firsthop/runtime/metrics"
	"github.com/firsthop/firsthop/runtime/netns"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/sockets"
	"github.com/firsthop/firsthop/runtime/sync"
	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/runtime/workloads"
	"github.com/firsthop/firsthop/runtime/writer"
)

// run is the runtime's components, connected.
type run struct {
	cfg     *Config
	data    *dataplane.Dataplane
	writer  *writer.Writer
	loop    *sync.Loop
	monitor *apihealth.Monitor
	dialer  *apihealth.Dialer
	watcher *watch.Watcher
	adopted []netip.AddrPort // what the API service led to

	workloads *workloads.Reconciler
	sockets   *sockets.Reconciler
	packets   *packetPath // nil: it is off
	clients   watch.Clients
	reporter  *reporter
	instance  runtimeLock

	growing gosync.Mutex // the writer gets the tables in the order in which they grew
}

func newRun(cfg *Config, d *dataplane.Dataplane) (*run, error) {
	r := &run{cfg: cfg, data: d}
	r.writer = writer.New(writer.Config{Store: d.Store(), Log: cfg.Log, Lock: d.Lock, Notify: func() { r.loop.Notify() }})
	r.loop = sync.New(sync.Config{
		Log: cfg.Log, Writer: r.writer, Grow: r.grow, NodeName: cfg.NodeName, NodePorts: cfg.NodePorts,
		DenyNodeExternalIPs: cfg.DenyNodeExternalIPs, ClusterIPsOutside: cfg.ClusterIPsOutside, ServiceCIDRs: cfg.ServiceCIDRs, Pods: cfg.Pods,
	})
	if err := r.connect(); err != nil {
		r.writer.Close()
		return nil, err
	}
	r.reporter = newReporter(r)
	return r, nil
}

func (r *run) grow(ctx context.Context, short writer.Short) error {
	r.growing.Lock()
	defer r.growing.Unlock()
	store, err := r.data.Grow(ctx, short)
	if err != nil {
		return err
	}
	r.packets.grown(ctx)
	r.writer.SetStore(store)
	return nil
}

// growSockets makes maps of sockets larger. The writer continues with the handles of the table that has them.
func (r *run) growSockets(ctx context.Context, full ...bpf.MapName) error {
	r.growing.Lock()
	defer r.growing.Unlock()
	store, err := r.data.GrowSockets(ctx, full...)
	if err != nil || store == nil {
		return err
	}
	r.writer.SetStore(store)
	return nil
}

// namespaces are where pods may be.
func (r *run) namespaces() netns.Config {
	return netns.Config{Proc: r.cfg.Proc, Root: r.cfg.HostRoot}
}

// followPods makes what tells the programs which pods opted out, and which addresses they have.
func (r *run) followPods() {
	r.workloads = workloads.New(workloads.Config{
		Log: r.cfg.Log, Store: workloads.NewKernel(r.data.Maps()), Namespaces: r.namespaces(), Programs: r.data.Features().NetnsCookie,
		Cookie: r.data.Cookie,
	})
}

// followSockets makes what moves or ends the sockets of backends that are gone.
func (r *run) followSockets() {
	r.sockets = sockets.New(sockets.Config{
		Log: r.cfg.Log, Maps: r.sockMaps, Namespaces: r.namespaces(), TCP: r.cfg.EndTCP, Attached: r.data.Attached, Out: r.outOfTable,
		Grow: r.growSockets,
	})
	r.sockets.SetAPI(r.loop.APIAddrs())
}

// sockMaps are the maps in which programs remember sockets.
func (r *run) sockMaps() (sockets.Maps, error) {
	maps := r.data.Maps()
	return sockets.Maps{
		RevNat:   []*ebpf.Map{maps.Map(bpf.MapUDPSockRevNat), maps.Map(bpf.MapUDPRevNat)},
		Affinity: []*ebpf.Map{maps.Map(bpf.MapUDPSockAffinity), maps.Map(bpf.MapSockAffinity)},
		TCP:      maps.Map(bpf.MapSockRevNat), Log: maps.Map(bpf.MapUDPLog), Usage: maps.Map(bpf.MapSockUsage), Batch: r.data.Features().Batch,
	}, nil
}

// outOfTable are the Services that are not in the table as they are wanted.
func (r *run) outOfTable() map[types.NamespacedName]bool {
	out := map[types.NamespacedName]bool{}
	for _, key := range r.writer.Out() {
		out[key.Service] = true
	}
	return out
}

// connect makes what connects to the API servers.
func (r *run) connect() error {
	id, err := newIdentity(r.cfg)
	if err != nil {
		return err
	}
	vips, err := r.serviceAddrs(id.Host)
	if err != nil {
		return err
	}
	if r.adopted, err = r.data.APIBackends(vips); err != nil {
		return err
	}
	r.loop.Adopt(vips, r.adopted)
	r.monitor, err = apihealth.New(apihealth.Config{
		Log: r.cfg.Log, Explicit: r.cfg.Endpoints, Services: vips, Adopted: r.adopted,
		IsService: r.data.IsService, Dial: r.data.DialPast,
		Root: r.cfg.HostRoot, StateDir: r.cfg.StateDir, Kubeconfig: r.cfg.Kubeconfig, Pod: r.cfg.Pod, Record: r.cfg.recordSaved,
		OnChange: r.loop.SetLive, OnKnown: r.loop.SetAPIServers,
		OnLost: func(endpoint netip.AddrPort) { r.dialer.Lost(endpoint) },
	})
	if err != nil {
		return err
	}
	r.dialer, err = apihealth.NewDialer(apihealth.DialerConfig{Log: r.cfg.Log, Monitor: r.monitor, Root: r.cfg.HostRoot, Proven: func() bool { return r.reporter.provenNow() }, Peer: r.data.BackendOf, Past: r.data.Bypass})
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
		Clients: r.clients, NodeName: r.cfg.NodeName, Log: r.cfg.Log, Pods: r.cfg.Pods, CIDRs: r.cfg.ServiceCIDRs == nil, Handle: r.loop.Handle, OnUseless: r.dialer.Leave,
		Stripper: &services.Stripper{Annotations: []string{workloads.Annotation, metrics.TriggerAnnotation}},
	})
	return nil
}
