package runtime

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	gosync "sync"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/kernel/memory"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/runtime/admin"
	"github.com/firsthop/firsthop/runtime/devices"
	"github.com/firsthop/firsthop/runtime/sync"
	"github.com/firsthop/firsthop/runtime/uplinks"
)

// packetPath is what serves clients outside of the cluster. Its methods do nothing on nil, where it is off.
type packetPath struct {
	run      *run
	follower *devices.Follower
	keeper   *uplinks.Keeper
	nodes    map[string][]netip.Addr // addresses of the other nodes; the loop's lock guards it
}

func newPacketPath(r *run) *packetPath {
	total := memory.Total(r.cfg.HostRoot)
	limit, _ := memory.Limit("")
	return &packetPath{
		run:      r,
		follower: devices.New(devices.Config{Log: r.cfg.Log, Names: r.cfg.Uplinks}),
		keeper: uplinks.New(uplinks.Config{
			Log: r.cfg.Log, Table: r.data.Maps, Locked: r.data.Locked, TCX: r.data.Has(kernel.FeatureTCX), Links: r.data.Links(),
			Proc: r.cfg.Proc, Flows: bpf.NodeFlows(total, limit),
			Ports: func() (devices.Ports, error) { return devices.PortRange(r.cfg.Proc, devices.DefaultNodePorts) },
		}),
		nodes: map[string][]netip.Addr{},
	}
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
	group.Go(func() { p.run.until(ctx, "packet path", p.keeper.Run) })
	group.Wait()
}

// grown has the programs read the table that has grown, which is written from now on.
func (p *packetPath) grown(ctx context.Context) {
	if p == nil {
		return
	}
	if err := p.keeper.Ensure(ctx); err != nil {
		p.run.cfg.Log.Error("clients outside of the cluster are served by the smaller table until this is repaired", "err", err)
	}
}

// observe takes what the loop publishes.
func (p *packetPath) observe(e sync.Event) {
	other, ok := e.(sync.NodeAddrs)
	if !ok || other.Node == p.run.cfg.NodeName {
		return
	}
	delete(p.nodes, other.Node)
	if len(other.Addrs) > 0 {
		p.nodes[other.Node] = other.Addrs
	}
	p.follower.SetPeers(devices.Peers{Nodes: slices.Concat(slices.Collect(maps.Values(p.nodes))...)})
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
