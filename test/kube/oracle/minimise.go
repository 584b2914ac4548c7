package oracle

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Minimise takes from a world what it can for which fails stays true. It is slow, for people to read the outcome.
func Minimise(w *World, fails func(*World) bool) *World {
	best := w.Clone()
	for again := true; again; {
		again = false
		for _, smaller := range reductions(best) {
			if fails(smaller) {
				best, again = smaller, true
				break
			}
		}
	}
	return best
}

// reductions are worlds that are simpler by one thing.
func reductions(w *World) []*World {
	var out []*World
	try := func(change func(*World)) {
		c := w.Clone()
		change(c)
		out = append(out, c)
	}
	for i := range w.Services {
		try(func(c *World) { c.Services = without(c.Services, i) })
	}
	for i := range w.Slices {
		try(func(c *World) { c.Slices = without(c.Slices, i) })
	}
	for i := range w.Node.NodePortAddrs {
		try(func(c *World) { c.Node.NodePortAddrs = without(c.Node.NodePortAddrs, i) })
	}
	for i, svc := range w.Services {
		reduceService(svc, func(change func(*corev1.Service)) { try(func(c *World) { change(c.Services[i]) }) })
	}
	for i, s := range w.Slices {
		reduceSlice(s, func(change func(*discoveryv1.EndpointSlice)) { try(func(c *World) { change(c.Slices[i]) }) })
	}
	return out
}

func reduceService(svc *corev1.Service, try func(func(*corev1.Service))) {
	for i := range svc.Spec.Ports {
		if len(svc.Spec.Ports) > 1 {
			try(func(s *corev1.Service) { s.Spec.Ports = without(s.Spec.Ports, i) })
		}
		if svc.Spec.Ports[i].NodePort != 0 {
			try(func(s *corev1.Service) { s.Spec.Ports[i].NodePort = 0 })
		}
	}
	for i := range svc.Spec.ExternalIPs {
		try(func(s *corev1.Service) { s.Spec.ExternalIPs = without(s.Spec.ExternalIPs, i) })
	}
	for i := range svc.Status.LoadBalancer.Ingress {
		try(func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = without(s.Status.LoadBalancer.Ingress, i)
		})
	}
	for i := range svc.Spec.LoadBalancerSourceRanges {
		try(func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = without(s.Spec.LoadBalancerSourceRanges, i)
		})
	}
	if svc.Spec.InternalTrafficPolicy != nil {
		try(func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = nil })
	}
	if svc.Spec.ExternalTrafficPolicy != "" {
		try(func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = "" })
	}
	if svc.Spec.TrafficDistribution != nil {
		try(func(s *corev1.Service) { s.Spec.TrafficDistribution = nil })
	}
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityNone {
		try(func(s *corev1.Service) {
			s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
		})
	}
	if svc.Spec.HealthCheckNodePort != 0 {
		try(func(s *corev1.Service) { s.Spec.HealthCheckNodePort = 0 })
	}
	if len(svc.Spec.ClusterIPs) > 1 {
		for i := range svc.Spec.ClusterIPs {
			try(func(s *corev1.Service) {
				s.Spec.ClusterIPs, s.Spec.IPFamilies = without(s.Spec.ClusterIPs, i), without(s.Spec.IPFamilies, i)
				s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
			})
		}
	}
}

func reduceSlice(s *discoveryv1.EndpointSlice, try func(func(*discoveryv1.EndpointSlice))) {
	for i := range s.Ports {
		try(func(s *discoveryv1.EndpointSlice) { s.Ports = without(s.Ports, i) })
	}
	for i := range s.Endpoints {
		try(func(s *discoveryv1.EndpointSlice) { s.Endpoints = without(s.Endpoints, i) })
		ep := s.Endpoints[i]
		if ep.Hints != nil {
			try(func(s *discoveryv1.EndpointSlice) { s.Endpoints[i].Hints = nil })
		}
		if ep.NodeName != nil {
			try(func(s *discoveryv1.EndpointSlice) { s.Endpoints[i].NodeName = nil })
		}
		if ep.Zone != nil {
			try(func(s *discoveryv1.EndpointSlice) { s.Endpoints[i].Zone = nil })
		}
		if len(ep.Addresses) > 1 {
			try(func(s *discoveryv1.EndpointSlice) {
				s.Endpoints[i].Addresses = slices.Clone(s.Endpoints[i].Addresses[:1])
			})
		}
		for _, condition := range []func(*discoveryv1.EndpointConditions) **bool{
			func(c *discoveryv1.EndpointConditions) **bool { return &c.Ready },
			func(c *discoveryv1.EndpointConditions) **bool { return &c.Serving },
			func(c *discoveryv1.EndpointConditions) **bool { return &c.Terminating },
		} {
			if *condition(&ep.Conditions) != nil {
				try(func(s *discoveryv1.EndpointSlice) { *condition(&s.Endpoints[i].Conditions) = nil })
			}
		}
	}
}
