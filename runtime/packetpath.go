package runtime

import (
	"context"
	"net/netip"
	gosync "sync"
	"sync/atomic"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/kernel/memory"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/sysctl"
	"github.com/firsthop/firsthop/runtime/admin"
	"github.com/firsthop/firsthop/runtime/conntrack"
	"github.com/firsthop/firsthop/runtime/devices"
	"github.com/firsthop/firsthop/runtime/sync"
	"github.com/firsthop/firsthop/runtime/uplinks"
)

// packetPath is what serves clients outside of the cluster. Its methods do nothing on nil, where it is off.
type packetPath struct {
	run       *run
	follower  *devices.Follower
	keeper    *uplinks.Keeper
	start     chan struct{}                       // closed once programs may be attached
	starts    gosync.Once                         // closes start
	ready     chan struct{}                       // closed once the maps are made
	collector atomic.Pointer[conntrack.Collector] // nil before the maps are made
}

func newPacketPath(r *run) *packetPath {
	total := memory.Total(r.cfg.HostRoot)
	limit, _ := memory.Limit("")
	p := &packetPath{run: r, start: make(chan struct{}), ready: make(chan struct{})}
	if p.attachedBefore() {
		p.starts.Do(func() { close(p.start) })
	}
	p.follower = devices.New(devices.Config{Log: r.cfg.Log, Names: r.cfg.Uplinks})
	p.keeper = uplinks.New(uplinks.Config{
		Log: r.cfg.Log, Table: r.data.Maps, Locked: r.data.Locked, TCX: r.data.Has(kernel.FeatureTCX), Links: r.data.Links(),
		Proc: r.cfg.Proc, Flows: bpf.NodeFlows(total, limit),
		Ports:  func() (devices.Ports, error) { return devices.PortRange(r.cfg.Proc, devices.DefaultNodePorts) },
		Before: func(_ context.Context, packet *bpf.PacketMaps) error { return p.takeOver(packet) },
	})
	return p
}

// attachedBefore reports whether a former runtime has attached programs: they serve, and flows of another proxy are left to it already.
// Otherwise the table has to be written first: which flows are another proxy's, its frontends say.
func (p *packetPath) attachedBefore() bool {
	pins, err := attach.DevicePins(bpf.Pins{Dir: p.run.data.Dir()}, bpf.UplinkHooks())
	return err == nil && len(pins) > 0
}

// started reports whether programs may be attached.
func (p *packetPath) started() bool {
	select {
	case <-p.start:
		return true
	default:
		return false
	}
}

// flows are the flows in the packet path's maps.
func (p *packetPath) flows(packet *bpf.PacketMaps) conntrack.Table {
	return conntrack.Table{Map: packet.Map(bpf.MapConntrack), Batch: p.run.data.Features().Batch}
}

func (p *packetPath) handover(packet *bpf.PacketMaps) *conntrack.Handover {
	return &conntrack.Handover{Log: p.run.cfg.Log, Table: p.flows(packet), Loaded: sysctl.Of(p.run.cfg.HostRoot).ConntrackLoaded}
}

// takeOver leaves flows that another service proxy has begun to the stack, before the first program is attached.
func (p *packetPath) takeOver(packet *bpf.PacketMaps) error {
	n, err := p.handover(packet).LeaveTranslated(p.isFrontend)
	if err != nil { // such flows are begun anew, which is no reason to serve nobody
		p.run.cfg.Log.Warn("UDP and SCTP flows that another service proxy has begun may be led to other endpoints", "err", err)
	}
	if n > 0 {
		p.run.cfg.Log.Info("flows that another service proxy has begun are left to it", "flows", n)
	}
	close(p.ready)
	return nil
}

// isFrontend reports whether clients outside may use an address and port.
func (p *packetPath) isFrontend(a netip.AddrPort, proto bpf.Proto) bool {
	var f bpf.Frontend
	err := p.run.data.Maps().Map(bpf.MapFrontend).Lookup(bpf.FrontendKeyOf(a, proto), &f)
	return err == nil && f.Flags&bpf.FrontendExternal != 0
}

// collect removes flows that have ended, until ctx ends.
func (p *packetPath) collect(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-p.ready:
	}
	packet := p.keeper.Packet()
	collector := conntrack.New(conntrack.Config{Log: p.run.cfg.Log, Table: p.flows(packet), Gone: p.run.sockets.Directory().Gone})
	p.collector.Store(collector)
	var group gosync.WaitGroup
	group.Go(func() { p.handover(packet).Follow(ctx) })
	collector.Run(ctx)
	group.Wait()
	return nil
}

// withoutPackets takes away what a former runtime has left of a packet path that is off now.
func (r *run) withoutPackets(ctx context.Context) error {
	return r.data.Locked(ctx, func(j *instance.Journal, pins bpf.Pins) error {
		return natinit.RemovePackets(attach.Config{Pins: pins, Journal: j, Links: r.data.Links(), Proc: r.cfg.Proc})
	})
}

// serve follows the devices and keeps the programs on them until ctx ends.
func (p *packetPath) serve(ctx context.Context) {
	if p == nil {
		return
	}
	var group gosync.WaitGroup
	group.Go(func() {
		p.run.until(ctx, "devices", func(ctx context.Context) error { return p.follower.Run(ctx, p.keeper.Set) })
	})
	group.Go(func() { p.run.until(ctx, "packet path", p.keep) })
	group.Go(func() { p.run.until(ctx, "flows", p.collect) })
	group.Wait()
}

// keep keeps the programs on the uplinks, once they may be attached.
func (p *packetPath) keep(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-p.start:
	}
	return p.keeper.Run(ctx)
}

// grown has the programs read the table that has grown, which is written from now on.
func (p *packetPath) grown(ctx context.Context) {
	if p == nil || !p.started() {
		return
	}
	if err := p.keeper.Ensure(ctx); err != nil {
		p.run.cfg.Log.Error("clients outside of the cluster are served by the smaller table until this is repaired", "err", err)
	}
}

// endpointsGone says that UDP frontends for clients outside may have lost backends, and that this is written.
func (p *packetPath) endpointsGone() {
	if p == nil {
		return
	}
	if c := p.collector.Load(); c != nil {
		c.EndpointsGone()
	}
}

// observe takes what the loop publishes.
func (p *packetPath) observe(e sync.Event) {
	if done, ok := e.(sync.FlushDone); ok && done.Err == nil {
		p.starts.Do(func() { close(p.start) })
		return
	}
	other, ok := e.(sync.NodeAddrs)
	if !ok || other.Node == p.run.cfg.NodeName {
		return
	}
	p.follower.SetNode(other.Node, other.Addrs)
}

// status is nil where the packet path is off.
func (p *packetPath) status() *uplinks.Status {
	if p == nil {
		return nil
	}
	st := p.keeper.Status()
	return &st
}

// adminPacketPath is how the packet path is, for the command line.
func adminPacketPath(st *uplinks.Status) *admin.PacketPath {
	if st == nil {
		return nil
	}
	out := &admin.PacketPath{Counts: map[string]uint64{}}
	if err := st.Served(); err != nil {
		out.Error = err.Error()
	}
	if st.Ports.Last != 0 {
		out.Ports = st.Ports.String()
	}
	for _, d := range st.Devices {
		u := admin.Uplink{Device: d.Name, Index: d.Index, Why: d.Why, Attached: d.Attached, By: string(d.By), Ahead: d.Ahead}
		if d.Error != nil {
			u.Error = d.Error.Error()
		}
		out.Uplinks = append(out.Uplinks, u)
	}
	for _, l := range st.Left {
		out.Left = append(out.Left, admin.LeftDevice{Device: l.Name, Reason: l.Reason})
	}
	for c, n := range st.Counts {
		out.Counts[c.String()] = n
	}
	return out
}
