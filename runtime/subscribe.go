package runtime

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/metrics"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/sync"
	"github.com/firsthop/firsthop/runtime/watch"
)

// subscribe tells the components what happens in the loop.
func (r *run) subscribe() {
	r.loop.Subscribe(r.toWorkloads)
	r.loop.Subscribe(r.reporter.toHealth)
	r.loop.Subscribe(toMetrics(r.reporter.metrics))
	if r.packets != nil {
		r.loop.Subscribe(r.packets.observe)
	}
	written := r.cfg.Written
	r.loop.Subscribe(func(e sync.Event) {
		switch e := e.(type) {
		case sync.APIServers:
			r.monitor.SetEndpoints(e.Endpoints)
			r.monitor.SetServices(e.Services)
			r.sockets.SetAPI(e.Services)
		case sync.PortsChanged:
			r.sockets.Set(e.Service, e.Ports)
		case sync.ServiceRange:
			r.sockets.SetRange(e)
		case sync.FlushBegun:
			r.sockets.Begin()
		case sync.FlushDone:
			if r.sockets.Done(e.Err).Gone {
				r.packets.endpointsGone()
			}
			if e.Err == nil && written != nil {
				written()
				written = nil
			}
		}
	})
}

func (r *run) toWorkloads(e sync.Event) {
	switch e := e.(type) {
	case sync.SourceRanges:
		r.workloads.SetRanges(bool(e))
	case sync.PodsReady:
		r.workloads.SetSynced()
	case sync.Observed:
		switch o := e.Object.(type) {
		case *corev1.Node: // this one: the Loop tells nobody of the others
			r.workloads.SetNode(services.NodeIPs(o))
		case *corev1.Pod:
			r.workloads.SetPod(o)
		case nil:
			if e.Resource == watch.Pods {
				r.workloads.DeletePod(e.Name)
			}
		}
	}
}

func (o *reporter) toHealth(e sync.Event) {
	switch e := e.(type) {
	case sync.NodePortAddrs:
		o.checks.SetAddrs(e)
	case sync.PortsChanged:
		h, ok := services.HealthOf(e.Ports)
		if !ok {
			h = services.Health{}
		}
		o.checks.Set(e.Service, h)
	case sync.Observed:
		if e.Resource != watch.Nodes {
			return
		}
		node, _ := e.Object.(*corev1.Node)
		o.proxy.SetNode(node)
		if o.node != nil && node != nil {
			o.node.Saw(node)
		}
	}
}

func toMetrics(m *metrics.Metrics) sync.Subscriber {
	var flushing []func(error)
	return func(e sync.Event) {
		switch e := e.(type) {
		case sync.Observed:
			switch e.Resource {
			case watch.Services:
				m.ServiceChanged()
			case watch.EndpointSlices:
				var service types.NamespacedName // of a slice that is gone, nobody knows
				var cause time.Time
				if s, ok := e.Object.(*discoveryv1.EndpointSlice); ok {
					service = types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
					cause = metrics.Trigger(s.Annotations)
				}
				m.SliceChanged(service, cause, e.Object == nil)
			}
		case sync.Queued:
			m.Queued(time.Time(e))
		case sync.FlushBegun:
			flushing = append(flushing, m.BeginFlush(e.Queued))
		case sync.FlushDone:
			for _, done := range flushing {
				done(e.Err)
			}
			flushing = nil
		}
	}
}
