package runtime

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/apihealth"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/runtime/writer"
)

// engine turns events into writes: one goroutine flushes, any may bring events.
type engine struct {
	log       *slog.Logger
	writer    *writer.Writer
	nodeName  string
	nodePorts services.NodePortAddresses
	withPods  bool // the node's Pods are watched
	endTCP    bool // TCP sockets end with their backend too, not only UDP's

	// apiEndpoints is told which API servers the API itself names, and under which addresses it is a Service.
	apiEndpoints func(endpoints, vips []netip.AddrPort)
	// gone is told which backends no Service port has any more, after the flush.
	gone func([]Backend)
	// pod, podGone and podsSynced are told of the node's Pods, nodeAddrs of its
	// addresses, limited whether any Service has source ranges.
	pod        func(*corev1.Pod)
	podGone    func(types.NamespacedName)
	podsSynced func()
	nodeAddrs  func([]netip.Addr)
	limited    func(bool)

	// written is told of each write that succeeded.
	written func()
	// watched is told what happens, for those outside.
	watched observer

	// grow gives parts of the table more capacity; nil where there is none to have.
	grow func(context.Context, writer.Short) error

	wake  chan struct{}
	pulse pulse

	flushing []func(error) // to be called when all is written that was to be when they came; of the one goroutine

	// mu is never held while the writer works: who waits for it may be answering the world.
	mu                                 sync.Mutex
	table                              *services.Table
	node                               services.Node
	nodeIPs                            []netip.Addr   // of the Node object
	hostIPs                            []netip.Addr   // of the host's interfaces
	hostNets                           []netip.Prefix // the same, with the lengths of their nets
	hostKnown, fallbackKnown, podsTold bool
	serversKnown                       bool             // the monitor has told which API servers it knows
	servers                            []netip.AddrPort // that it knows
	claimLog                           *rate.Limiter
	nodeSeen                           bool // the Node object is there
	released                           bool // the table works out Services as they come
	synced                             map[watch.Resource]time.Time
	live                               apihealth.Set // what the API service leads to; empty: what its slices say
	unheard                            bool          // live changed, and nothing was written yet
	vips                               []netip.AddrPort
	api                                []services.Port
	apiTold                            []services.Port
	untold                             untold // what the writer has not heard of yet
	serviceRange                       serviceRange
	ranges                             int             // ports with source ranges
	serving                            map[Backend]int // backends whose sockets end with them, and by how many ports they are served
	leaving                            []Backend       // that the next flush takes away
	problems                           map[types.NamespacedName][]services.Problem
}

// Backend is where connections went.
type Backend struct {
	Addr  netip.AddrPort
	Proto bpf.Proto
}

func newEngine(log *slog.Logger, w *writer.Writer, nodeName string, nodePorts services.NodePortAddresses) *engine {
	node := services.Node{Name: nodeName}
	table := services.NewTable(node)
	table.Hold()
	return &engine{
		log: log, writer: w, nodeName: nodeName, nodePorts: nodePorts,
		apiEndpoints: func(_, _ []netip.AddrPort) {}, gone: func([]Backend) {},
		pod: func(*corev1.Pod) {}, podGone: func(types.NamespacedName) {}, podsSynced: func() {},
		nodeAddrs: func([]netip.Addr) {}, limited: func(bool) {}, watched: nobody{}, written: func() {},
		wake: make(chan struct{}, 1), table: table, node: node,
		serviceRange: newServiceRange(nil), claimLog: newClaimLimiter(),
		synced: map[watch.Resource]time.Time{}, problems: map[types.NamespacedName][]services.Problem{}, serving: map[Backend]int{},
	}
}

// nodeGrace is how long the first write waits for the Node object, after all
// else is known: it may not be there, or not be ours to read.
const nodeGrace = 5 * time.Second

// ready reports whether all inputs are known: before, a write would take away
// what only wasn't heard of yet (calico#12192).
func (e *engine) ready() (bool, time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	svcs, slices := e.synced[watch.Services], e.synced[watch.EndpointSlices]
	if svcs.IsZero() || slices.IsZero() || !e.hostKnown || !e.serversKnown {
		return false, 0
	}
	if !e.synced[watch.Nodes].IsZero() {
		return true, 0
	}
	since := svcs
	if slices.After(since) {
		since = slices
	}
	left := nodeGrace - time.Since(since)
	return left <= 0, left
}

// handle takes events of the watches.
func (e *engine) handle(events []watch.Event) {
	defer e.pulse.begin()()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range events {
		if ev.Synced {
			if e.synced[ev.Resource].IsZero() {
				e.synced[ev.Resource] = time.Now()
				if ev.Resource == watch.Nodes && !e.nodeSeen {
					e.log.Warn("there is no such Node object: give its name with --node-name; node addresses, zone and pods of this node are not known", "node", e.nodeName)
				}
				if ev.Resource == watch.ServiceCIDRs {
					e.serviceRange.known = true
					e.queueRange()
				}
				e.release()
				e.tellPodsSynced()
				e.poke()
			}
			continue
		}
		e.apply(e.changes(ev))
	}
}

// release works out the Services that have waited for slices, once all slices and Services have come.
func (e *engine) release() {
	if !e.released && !e.synced[watch.Services].IsZero() && !e.synced[watch.EndpointSlices].IsZero() {
		e.released = true
		e.apply(e.table.Release())
	}
}

func (e *engine) changes(ev watch.Event) []services.Change {
	switch ev.Resource {
	case watch.Services:
		e.watched.serviceChanged()
		if ev.Object == nil {
			e.serviceOfOthers(ev.Name, nil)
			return e.table.DeleteService(ev.Name)
		}
		svc := ev.Object.(*corev1.Service)
		e.serviceOfOthers(ev.Name, svc)
		return e.table.SetService(svc)
	case watch.EndpointSlices:
		if ev.Object == nil {
			e.watched.sliceChanged(types.NamespacedName{}, nil, true)
			return e.table.DeleteSlice(ev.Name)
		}
		slice := ev.Object.(*discoveryv1.EndpointSlice)
		e.watched.sliceChanged(types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}, slice.Annotations, false)
		return e.table.SetSlice(slice)
	case watch.Nodes:
		if node, ok := ev.Object.(*corev1.Node); ok && node != nil {
			if !e.nodeSeen && !e.synced[watch.Nodes].IsZero() {
				e.log.Info("the Node object is there now", "node", e.nodeName)
			}
			e.nodeSeen = true
			e.node.Zone = node.Labels[corev1.LabelTopologyZone]
			e.nodeIPs = services.NodeIPs(node)
			e.nodeAddrs(e.nodeIPs)
			e.rangeChanged()
			e.watched.nodeChanged(node)
			return e.setNode()
		}
		e.nodeSeen = false
		e.watched.nodeChanged(nil)
	case watch.Pods:
		if pod, ok := ev.Object.(*corev1.Pod); ok && pod != nil {
			e.pod(pod)
		} else {
			e.podGone(ev.Name)
		}
	case watch.ServiceCIDRs:
		e.cidrChanged(ev)
	}
	return nil
}

// setHostAddrs takes the addresses of the host's interfaces, and their nets.
func (e *engine) setHostAddrs(addrs []netip.Prefix) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hostNets, e.hostIPs = addrs, nil
	for _, a := range addrs {
		e.hostIPs = append(e.hostIPs, a.Addr())
	}
	e.hostIPs = slices.Compact(e.hostIPs)
	if !e.hostKnown {
		e.hostKnown = true
		e.poke()
	}
	e.apply(e.setNode())
	e.reserve()
	e.rangeChanged()
}

// knowFallback says that it is known whether somebody else serves Services here.
func (e *engine) knowFallback() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fallbackKnown = true
	e.tellPodsSynced()
}

// tellPodsSynced says, once, that all is known that decides what the programs
// must know of pods: before, what a former runtime told them would be taken away.
func (e *engine) tellPodsSynced() {
	if e.podsTold || !e.fallbackKnown || e.synced[watch.Services].IsZero() || e.withPods && e.synced[watch.Pods].IsZero() {
		return
	}
	e.podsTold = true
	e.podsSynced()
}

func (e *engine) setNode() []services.Change {
	e.node.NodePortAddrs = e.nodePorts.Select(e.hostIPs, e.nodeIPs)
	e.node.Addrs = slices.Concat(e.hostIPs, e.nodeIPs)
	if e.nodePorts.Primary || len(e.nodePorts.CIDRs) > 0 {
		e.watched.addrsChanged(e.node.NodePortAddrs)
	}
	return e.table.SetNode(e.node)
}

// apply hands changes to the writer.
func (e *engine) apply(changes []services.Change) {
	api := false
	for _, c := range changes {
		e.logClaims(c.Service, e.problems[c.Service], c.Problems)
		if len(c.Problems) == 0 {
			delete(e.problems, c.Service)
		} else {
			e.problems[c.Service] = c.Problems
		}
		if c.Service == services.APIService {
			e.tellAPI(c.After)
			api = true
			continue
		}
		e.count(c.Before, c.After)
		e.watched.portsChanged(c.Service, c.After)
		e.set(c)
	}
	if api {
		e.reserve()
	}
}

// set keeps a change for the next flush.
func (e *engine) set(c services.Change) {
	now := time.Now()
	if e.released {
		e.untold.add(c)
	} else {
		e.writer.Set(c.Before, c.After) // it writes nothing yet; that much less is to be done when all has come
	}
	e.pulse.queue(now)
	e.watched.queued(now)
	e.poke()
}

// count keeps the books: which backends, whose sockets are to end with them, are
// served by how many ports, as two Services may share one; and how many ports
// have source ranges.
func (e *engine) count(before, after []services.Port) {
	hadRanges := e.ranges > 0
	each := func(ports []services.Port, by int) {
		for i := range ports {
			if len(ports[i].Ranges) > 0 {
				e.ranges += by
			}
			proto := ports[i].Key.Proto
			if proto != bpf.UDP && !(proto == bpf.TCP && e.endTCP) {
				continue
			}
			for _, a := range ports[i].Serving {
				b := Backend{a, proto}
				if e.serving[b] += by; e.serving[b] == 0 {
					delete(e.serving, b)
					e.leaving = append(e.leaving, b)
				}
			}
		}
	}
	each(after, +1)
	each(before, -1)
	if has := e.ranges > 0; has != hadRanges {
		e.limited(has)
	}
}

// nodeMissing says that there is no Node object of the given name; "": there is, or it is not known yet.
func (e *engine) nodeMissing() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.nodeSeen || e.synced[watch.Nodes].IsZero() {
		return ""
	}
	return "there is no Node " + e.nodeName + ": give its name with --node-name"
}

// stillGone reports whether no port serves a backend.
func (e *engine) stillGone(b Backend) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.serving[b] == 0
}

// unused leaves of backends those that did not come back meanwhile.
func (e *engine) unused(leaving []Backend) []Backend {
	return slices.DeleteFunc(leaving, func(b Backend) bool { return e.serving[b] > 0 })
}

// problemsByReason counts what is ignored of objects.
func (e *engine) problemsByReason() map[services.Reason]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := map[services.Reason]int{}
	for _, list := range e.problems {
		for _, p := range list {
			out[p.Reason]++
		}
	}
	return out
}
