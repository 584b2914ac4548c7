package sync

import (
	"time"

	"github.com/firsthop/firsthop/runtime/watch"
)

// inputs are what must be known before anything is written: a write would take
// away what only has not been heard of yet (calico#12192).
type inputs struct {
	synced                          map[watch.Resource]time.Time // when all objects of it had come
	hostAddrs, apiServers, fallback bool
	released                        bool // the table works out Services as they come
	podsReady                       bool // PodsReady was published
}

func (in *inputs) has(r watch.Resource) bool { return !in.synced[r].IsZero() }

// nodeGrace is how long the first write waits for Node objects, this node's and
// the others, after all else is known: they may not be there, or not be ours to read.
const nodeGrace = 5 * time.Second

// ready reports whether all inputs are known, or how long to wait for the last of them.
func (l *Loop) ready() (bool, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	in := &l.inputs
	if !in.has(watch.Services) || !in.has(watch.EndpointSlices) || !in.hostAddrs || !in.apiServers {
		return false, 0
	}
	if in.has(watch.Nodes) && l.node.others.known {
		return true, 0
	}
	since := in.synced[watch.Services]
	if at := in.synced[watch.EndpointSlices]; at.After(since) {
		since = at
	}
	left := nodeGrace - time.Since(since)
	return left <= 0, left
}

// synced notes that all objects of a resource have come.
func (l *Loop) synced(r watch.Resource) {
	if l.inputs.has(r) {
		return
	}
	l.inputs.synced[r] = time.Now()
	switch {
	case r == watch.Nodes && !l.node.found:
		l.cfg.Log.Warn("there is no such Node object: give its name with --node-name; node addresses, zone and pods of this node are not known", "node", l.cfg.NodeName)
	case r == watch.OtherNodes:
		l.nodesKnown()
	case r == watch.ServiceCIDRs:
		l.serviceRange.known = true
		l.queueRange()
	}
	if !l.inputs.released && l.inputs.has(watch.Services) && l.inputs.has(watch.EndpointSlices) {
		l.inputs.released = true
		l.apply(l.table.Release())
	}
	l.publishPodsReady()
	l.notify()
}

// FallbackKnown says that it is known whether somebody else serves Services here.
func (l *Loop) FallbackKnown() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inputs.fallback = true
	l.publishPodsReady()
}

// publishPodsReady publishes PodsReady, once. Earlier, what a former runtime
// told the programs of pods would be taken away.
func (l *Loop) publishPodsReady() {
	in := &l.inputs
	if in.podsReady || !in.fallback || !in.has(watch.Services) || l.cfg.Pods && !in.has(watch.Pods) {
		return
	}
	in.podsReady = true
	l.publish(PodsReady{})
}
