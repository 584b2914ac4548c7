package services

import (
	"maps"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Stripper removes from objects what nobody here uses: its Strip is a
// cache.TransformFunc of client-go. Values that many objects have (node names,
// zones, port names, conditions) they then share. The zero Stripper is ready.
// Safe for concurrent use.
type Stripper struct {
	// Annotations of any object that are kept. All others go, but for those of Services that Ports reads.
	Annotations []string

	shared sync.Map // sharedKey -> pointer
}

// Strip strips a Service, EndpointSlice, Node, Pod or ServiceCIDR in place; anything else it
// leaves alone. It is idempotent. The object must not be in use by others yet.
func (s *Stripper) Strip(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Service:
		s.service(o)
	case *discoveryv1.EndpointSlice:
		s.slice(o)
	case *corev1.Node:
		s.node(o)
	case *corev1.Pod:
		s.pod(o)
	case *networkingv1.ServiceCIDR:
		s.meta(&o.ObjectMeta, nil)
		o.Status = networkingv1.ServiceCIDRStatus{}
	}
	return obj, nil
}

// meta keeps what identifies an object and its version.
func (s *Stripper) meta(m *metav1.ObjectMeta, labels []string) {
	*m = metav1.ObjectMeta{
		Namespace:         m.Namespace,
		Name:              m.Name,
		UID:               m.UID,
		ResourceVersion:   m.ResourceVersion,
		CreationTimestamp: m.CreationTimestamp,
		DeletionTimestamp: m.DeletionTimestamp,
		Labels:            only(m.Labels, labels),
		Annotations:       only(m.Annotations, s.Annotations),
	}
}

func only(m map[string]string, keys []string) map[string]string {
	var out map[string]string
	for _, k := range keys {
		if v, ok := m[k]; ok {
			if out == nil {
				out = make(map[string]string, 1)
			}
			out[k] = v
		}
	}
	return out
}

func (s *Stripper) service(svc *corev1.Service) {
	nodePortRanges := only(svc.Annotations, []string{NodePortRangesAnnotation})
	s.meta(&svc.ObjectMeta, []string{LabelProxyName})
	if svc.Annotations == nil {
		svc.Annotations = nodePortRanges
	}
	maps.Copy(svc.Annotations, nodePortRanges)
	spec := svc.Spec
	svc.Spec = corev1.ServiceSpec{
		Type:                     spec.Type,
		ClusterIP:                spec.ClusterIP,
		ClusterIPs:               spec.ClusterIPs,
		ExternalIPs:              spec.ExternalIPs,
		Ports:                    spec.Ports,
		SessionAffinity:          spec.SessionAffinity,
		SessionAffinityConfig:    spec.SessionAffinityConfig,
		LoadBalancerSourceRanges: spec.LoadBalancerSourceRanges,
		ExternalTrafficPolicy:    spec.ExternalTrafficPolicy,
		HealthCheckNodePort:      spec.HealthCheckNodePort,
	}
	if p := spec.InternalTrafficPolicy; p != nil {
		svc.Spec.InternalTrafficPolicy = share(s, *p)
	}
	if len(spec.ClusterIPs) == 1 && spec.ClusterIPs[0] == spec.ClusterIP {
		svc.Spec.ClusterIPs = nil // the same
	}
	svc.Spec.Ports = exactly(svc.Spec.Ports)
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		*p = corev1.ServicePort{Name: *share(s, p.Name), Protocol: p.Protocol, Port: p.Port, NodePort: p.NodePort}
	}
	var ingress []corev1.LoadBalancerIngress
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			ingress = append(ingress, corev1.LoadBalancerIngress{IP: in.IP, IPMode: in.IPMode})
		}
	}
	svc.Status = corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: ingress}}
}

func (s *Stripper) slice(sl *discoveryv1.EndpointSlice) {
	s.meta(&sl.ObjectMeta, []string{discoveryv1.LabelServiceName, LabelProxyName, corev1.IsHeadlessService})
	sl.Ports = exactly(sl.Ports)
	for i := range sl.Ports {
		p := &sl.Ports[i]
		*p = discoveryv1.EndpointPort{Name: shareAt(s, p.Name), Protocol: shareAt(s, p.Protocol), Port: shareAt(s, p.Port)}
	}
	sl.Endpoints = exactly(sl.Endpoints)
	first := make([]string, len(sl.Endpoints)) // one array for all endpoints
	for i := range sl.Endpoints {
		ep := &sl.Endpoints[i]
		addrs := first[i : i : i+1]
		if len(ep.Addresses) > 0 {
			addrs = append(addrs, ep.Addresses[0])
		}
		*ep = discoveryv1.Endpoint{
			Addresses: addrs,
			Conditions: discoveryv1.EndpointConditions{
				Ready:       shareAt(s, ep.Conditions.Ready),
				Serving:     shareAt(s, ep.Conditions.Serving),
				Terminating: shareAt(s, ep.Conditions.Terminating),
			},
			NodeName: shareAt(s, ep.NodeName),
			Hints:    s.hints(ep.Hints),
		}
	}
}

// hints shares the usual: one zone, one node, or one of each.
func (s *Stripper) hints(h *discoveryv1.EndpointHints) *discoveryv1.EndpointHints {
	if h == nil || len(h.ForZones)+len(h.ForNodes) == 0 {
		return nil
	}
	if len(h.ForZones) > 1 || len(h.ForNodes) > 1 {
		return h
	}
	var k hintKey
	for _, z := range h.ForZones {
		k.zone, k.hasZone = z.Name, true
	}
	for _, n := range h.ForNodes {
		k.node, k.hasNode = n.Name, true
	}
	p, _ := s.shared.LoadOrStore(k, h)
	return p.(*discoveryv1.EndpointHints)
}

type hintKey struct {
	zone, node       string
	hasZone, hasNode bool
}

// share gives a pointer to a value that all who ask for it share. Values are
// few by their nature; what is shared is never released.
func share[T comparable](s *Stripper, v T) *T {
	if p, ok := s.shared.Load(v); ok {
		return p.(*T)
	}
	p, _ := s.shared.LoadOrStore(v, &v)
	return p.(*T)
}

func shareAt[T comparable](s *Stripper, v *T) *T {
	if v == nil {
		return nil
	}
	return share(s, *v)
}

// exactly drops the capacity that decoding left for more elements.
func exactly[T any](list []T) []T {
	if len(list) == cap(list) {
		return list
	}
	return append(make([]T, 0, len(list)), list...)
}

// node keeps labels, taints, addresses and conditions of a node.
func (s *Stripper) node(n *corev1.Node) {
	labels := n.Labels
	s.meta(&n.ObjectMeta, nil)
	n.Labels = labels
	n.Spec = corev1.NodeSpec{Taints: n.Spec.Taints}
	n.Status = corev1.NodeStatus{Addresses: n.Status.Addresses, Conditions: n.Status.Conditions}
}

// pod keeps what finds a pod on its node, and whether it has ended.
func (s *Stripper) pod(p *corev1.Pod) {
	s.meta(&p.ObjectMeta, nil)
	p.Spec = corev1.PodSpec{NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork}
	p.Status = corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs}
}
