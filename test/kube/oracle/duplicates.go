package oracle

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/firsthop/firsthop/runtime/services"
)

// place is what only one endpoint of a Service can have.
type place struct {
	namespace, service, port string
	proto                    corev1.Protocol
	family                   discoveryv1.AddressType
	addr                     netip.Addr
	number                   int32
}

// rank orders endpoints of one place: the first one wins.
type rank [9]bool

func rankOf(ep *discoveryv1.Endpoint, node services.Node) rank {
	is := func(p *bool, otherwise bool) bool {
		if p == nil {
			return otherwise
		}
		return *p
	}
	c := ep.Conditions
	// What follows the second is no reason to prefer one, but the order of slices must not matter.
	r := rank{!is(c.Terminating, false), is(c.Ready, true), is(c.Serving, true), ep.NodeName != nil && *ep.NodeName == node.Name}
	if h := ep.Hints; h != nil {
		r[4] = slices.ContainsFunc(h.ForZones, func(z discoveryv1.ForZone) bool { return z.Name == node.Zone })
		r[5] = len(h.ForZones) > 0
		r[6] = slices.ContainsFunc(h.ForNodes, func(n discoveryv1.ForNode) bool { return n.Name == node.Name })
		r[7] = len(h.ForNodes) > 0
	}
	return r
}

func (r rank) before(o rank) bool {
	for i := range r {
		if r[i] != o[i] {
			return r[i]
		}
	}
	return false
}

// dropDuplicates makes a slice of each endpoint and port, and leaves out those that lose.
func dropDuplicates(w *World) bool {
	best := map[place]rank{}
	visit(w, func(s *discoveryv1.EndpointSlice, port *discoveryv1.EndpointPort, ep *discoveryv1.Endpoint, at place) {
		if r, ok := best[at]; !ok || rankOf(ep, w.Node).before(r) {
			best[at] = rankOf(ep, w.Node)
		}
	})
	changed := false
	var flat []*discoveryv1.EndpointSlice
	taken := map[place]bool{}
	visit(w, func(s *discoveryv1.EndpointSlice, port *discoveryv1.EndpointPort, ep *discoveryv1.Endpoint, at place) {
		if rankOf(ep, w.Node) != best[at] {
			changed = true
			return
		}
		if taken[at] { // an equal one
			return
		}
		taken[at] = true
		one := *s
		one.Name = fmt.Sprintf("%s-%d", s.Name, len(flat))
		one.Ports, one.Endpoints = []discoveryv1.EndpointPort{*port}, []discoveryv1.Endpoint{*ep}
		flat = append(flat, &one)
	})
	if changed {
		w.Slices = flat
	}
	return changed
}

// visit calls fn for each endpoint and port of the slices that count.
func visit(w *World, fn func(*discoveryv1.EndpointSlice, *discoveryv1.EndpointPort, *discoveryv1.Endpoint, place)) {
	for _, s := range w.Slices {
		if _, headless := s.Labels[corev1.IsHeadlessService]; headless {
			continue
		}
		for i := range s.Ports {
			port := &s.Ports[i]
			if port.Name == nil || port.Port == nil || *port.Port == 0 || port.Protocol == nil {
				continue
			}
			for j := range s.Endpoints {
				ep := &s.Endpoints[j]
				if len(ep.Addresses) == 0 {
					continue
				}
				if a, ok := parse(ep.Addresses[0]); ok {
					fn(s, port, ep, place{s.Namespace, s.Labels[discoveryv1.LabelServiceName], *port.Name, *port.Protocol, s.AddressType, a, *port.Port})
				}
			}
		}
	}
}
