package sync

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/runtime/writer"
)

// Config is what a Loop needs.
type Config struct {
	Log    *slog.Logger
	Writer *writer.Writer
	// Grow gives parts of the table more capacity; nil: there is none to have.
	Grow func(context.Context, writer.Short) error

	NodeName            string
	NodePorts           services.NodePortAddresses
	DenyNodeExternalIPs bool
	ClusterIPsOutside   bool
	ServiceCIDRs        []netip.Prefix // nil: those that the API names
	Pods                bool           // the node's Pods are watched
}

// Loop turns events into writes: one goroutine writes, any may bring events.
type Loop struct {
	cfg         Config
	wake        chan struct{}
	liveness    Liveness
	subscribers []Subscriber

	// mu is never held while the writer waits for the kernel: status and health endpoints take it.
	mu           sync.Mutex
	table        *services.Table
	changes      []services.Change // of the update at hand
	inputs       inputs
	node         node
	api          apiService
	serviceRange serviceRange
	ranges       int // ports with source ranges
	problems     problems
	noLocal      noLocal
}

// node is what is known of this node, and from where.
type node struct {
	services.Node
	found    bool                  // the Node object exists
	ips      []netip.Addr          // of the Node object
	hostIPs  []netip.Addr          // of the host's interfaces
	hostNets []netip.Prefix        // the same, with their prefix lengths
	devices  map[netip.Addr]string // of hostIPs
	others   otherNodes
}

// New makes a Loop.
func New(cfg Config) *Loop {
	self := node{others: newOtherNodes(), Node: services.Node{
		Name: cfg.NodeName, DenyExternal: cfg.DenyNodeExternalIPs, ClusterIPsOutside: cfg.ClusterIPsOutside, AtNodes: true,
	}}
	table := services.NewTable(self.Node)
	table.Hold()
	return &Loop{
		cfg: cfg, wake: make(chan struct{}, 1), table: table, node: self,
		inputs: inputs{synced: map[watch.Resource]time.Time{}}, serviceRange: newServiceRange(cfg.ServiceCIDRs),
		problems: newProblems(cfg.Log),
	}
}

// Liveness tells whether the Loop gets on.
func (l *Loop) Liveness() *Liveness { return &l.liveness }

// Handle takes events of the watches.
func (l *Loop) Handle(events []watch.Event) {
	l.update(func() {
		for i := range events {
			if events[i].Synced {
				l.synced(events[i].Resource)
				continue
			}
			if events[i].Resource == watch.OtherNodes { // nobody else listens: there are many
				l.observeOther(&events[i])
				continue
			}
			l.publish(Observed{&events[i]})
			l.apply(l.observe(&events[i]))
		}
	})
}

// update takes news. What it changes is queued at once: no flush writes a part of it.
func (l *Loop) update(do func()) {
	defer l.liveness.begin()()
	l.mu.Lock()
	defer l.mu.Unlock()
	do()
	if l.node.others.unwritten {
		l.node.others.unwritten = false
		l.cfg.Writer.SetNodes(l.changes, l.table.NodeAddrs())
	} else if len(l.changes) > 0 {
		l.cfg.Writer.Set(l.changes)
	} else {
		return
	}
	l.changes = nil
	now := time.Now()
	l.liveness.queue(now)
	l.publish(Queued(now))
	l.notify()
}

// observe gives an object to the table, or to whatever else it is for.
func (l *Loop) observe(ev *watch.Event) []services.Change {
	switch ev.Resource {
	case watch.Services:
		svc, _ := ev.Object.(*corev1.Service)
		if l.serviceRange.SetService(ev.Name, svc) {
			l.rangeChanged()
		}
		if svc == nil {
			return l.table.DeleteService(ev.Name)
		}
		return l.table.SetService(svc)
	case watch.EndpointSlices:
		if slice, ok := ev.Object.(*discoveryv1.EndpointSlice); ok {
			return l.table.SetSlice(slice)
		}
		return l.table.DeleteSlice(ev.Name)
	case watch.Nodes:
		obj, ok := ev.Object.(*corev1.Node)
		if ok && !l.node.found && l.inputs.has(watch.Nodes) {
			l.cfg.Log.Info("the Node object exists now", "node", l.cfg.NodeName)
		}
		if l.node.found = ok; !ok {
			return nil
		}
		l.node.Zone, l.node.ips = obj.Labels[corev1.LabelTopologyZone], services.NodeIPs(obj)
		l.rangeChanged()
		return l.setNode()
	case watch.ServiceCIDRs:
		cidr, _ := ev.Object.(*networkingv1.ServiceCIDR)
		l.serviceRange.SetCIDR(ev.Name.Name, cidr)
		l.rangeChanged()
	}
	return nil
}

// SetHostAddrs takes the addresses of the host's interfaces, with their prefix lengths.
func (l *Loop) SetHostAddrs(addrs []watch.HostAddr) {
	l.update(func() {
		l.node.hostNets, l.node.hostIPs, l.node.devices = nil, nil, map[netip.Addr]string{}
		for _, a := range addrs {
			l.node.hostNets = append(l.node.hostNets, a.Prefix)
			l.node.hostIPs = append(l.node.hostIPs, a.Addr())
			l.node.devices[a.Addr()] = a.Device
		}
		l.node.hostIPs = slices.Compact(l.node.hostIPs)
		if !l.inputs.hostAddrs {
			l.inputs.hostAddrs = true
			l.notify()
		}
		l.selectNodes()
		l.reserve()
		l.rangeChanged()
	})
}

func (l *Loop) setNode() []services.Change {
	n := &l.node
	n.NodePortAddrs = l.cfg.NodePorts.Select(n.hostIPs, n.ips)
	n.Addrs = slices.Concat(n.hostIPs, n.ips)
	n.Interfaces = l.interfaces()
	if l.cfg.NodePorts.Given() {
		l.publish(NodePortAddrs(n.NodePortAddrs))
	}
	return l.table.SetNode(n.Node)
}

// apply takes changes of Services.
func (l *Loop) apply(changes []services.Change) {
	api := false
	for _, c := range changes {
		l.problems.set(c.Service, c.Problems)
		l.noLocal.count(c.Before, -1)
		l.noLocal.count(c.After, +1)
		if c.Service == services.APIService {
			l.setAPI(c.After)
			api = true
			continue
		}
		l.countRanges(c.Before, c.After)
		l.publish(PortsChanged{c.Service, c.After})
		l.changes = append(l.changes, c)
	}
	if api {
		l.reserve()
	}
}

// NodeMissing says that there is no Node object of the configured name; "": there is, or it is not known yet.
func (l *Loop) NodeMissing() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.node.found || !l.inputs.has(watch.Nodes) {
		return ""
	}
	return "there is no Node " + l.cfg.NodeName + ": give its name with --node-name"
}

// Kinds are those of each wanted port's frontends, in the order of services.Kind.
func (l *Loop) Kinds() map[services.PortKey][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[services.PortKey][]string{}
	for _, ports := range l.table.All() {
		for i := range ports {
			for _, k := range slices.Compact(slices.Sorted(slices.Values(ports[i].Kinds))) {
				out[ports[i].Key] = append(out[ports[i].Key], k.String())
			}
		}
	}
	return out
}

// Problems are what is ignored or wrong in objects, in no order.
func (l *Loop) Problems() (out []services.Problem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, list := range l.problems.byService {
		out = append(out, list...)
	}
	return out
}
