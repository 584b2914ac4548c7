package oracle

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/services"
)

// The node and its neighbours.
var (
	nodes = []string{"node-a", "node-b", "node-c"}
	zones = []string{"zone-a", "zone-b", "zone-c"}
)

// Generator makes worlds. Small pools of names and addresses make things meet, but no two Services ask for one frontend:
// which of them has it is runtime/services' to test, as kube-proxy gives it to whichever it comes to last.
type Generator struct {
	Rand *rand.Rand
	// Odd, from 0 to 1, is how often a field has what no API server of today accepts. See Differences.
	Odd float64
}

// chance tells whether something happens that does with a probability.
func (g *Generator) chance(p float64) bool { return g.Rand.Float64() < p }

func (g *Generator) odd() bool { return g.Odd > 0 && g.chance(g.Odd) }

func pick[T any](g *Generator, list ...T) T { return list[g.Rand.IntN(len(list))] }

// maybe is nil or a pointer to one of the values, each as likely.
func maybe[T any](g *Generator, list ...T) *T {
	i := g.Rand.IntN(len(list) + 1)
	if i == len(list) {
		return nil
	}
	return &list[i]
}

// World makes a new world.
func (g *Generator) World() *World {
	w := &World{Node: g.node()}
	for i := range 1 + g.Rand.IntN(3) {
		w.Services = append(w.Services, g.service(i))
	}
	for i := range g.Rand.IntN(2 + 3*len(w.Services)) {
		w.Slices = append(w.Slices, g.slice(i, pick(g, w.Services...)))
	}
	return w
}

// node makes the node: its name stays, its zone and addresses may not.
func (g *Generator) node() services.Node {
	node := services.Node{Name: nodes[0], Zone: pick(g, zones[0], zones[0], zones[1], "")}
	for _, a := range []string{"127.0.0.1", "192.168.0.2", "::1", "fd00:168::2"} {
		if g.chance(0.8) {
			node.NodePortAddrs = append(node.NodePortAddrs, netip.MustParseAddr(a))
		}
	}
	return node
}

// names are those of Services, by their number.
var names = []types.NamespacedName{
	{Namespace: "default", Name: "web"}, {Namespace: "other", Name: "web"}, services.APIService,
}

// service makes the Service with a number. Its addresses are its alone: which of several claimants gets an address,
// kube-proxy leaves to chance.
func (g *Generator) service(i int) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: names[i].Namespace, Name: names[i].Name}}
	spec := &svc.Spec
	spec.Type = pick(g, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeLoadBalancer)
	if g.chance(0.02) {
		svc.Labels = map[string]string{services.LabelProxyName: pick(g, "mesh", "")}
	}
	g.clusterIPs(i, spec)
	g.ports(i, spec)
	if g.chance(0.04) {
		spec.Type = corev1.ServiceTypeExternalName
		spec.ExternalName = "example.com"
	}
	for n := range g.Rand.IntN(3) {
		spec.ExternalIPs = append(spec.ExternalIPs, pick(g, fmt.Sprintf("192.168.99.%d%d", i+1, n), fmt.Sprintf("fd00:99::%d%d", i+1, n)))
	}
	if g.odd() {
		spec.ExternalIPs = append(spec.ExternalIPs, pick(g, "127.0.0.9", "169.254.0.9", "224.0.0.9", "::", "fe80::9", "0.0.0.0", "nonsense", "", " "))
	}
	spec.InternalTrafficPolicy = maybe(g, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)
	spec.ExternalTrafficPolicy = pick(g, "", corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	spec.PublishNotReadyAddresses = g.chance(0.1) // the EndpointSlice controller heeds it, no service proxy does
	spec.TrafficDistribution = maybe(g, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)
	g.affinity(spec)
	g.loadBalancer(i, svc)
	return svc
}

func (g *Generator) clusterIPs(i int, spec *corev1.ServiceSpec) {
	v4, v6 := fmt.Sprintf("10.96.0.%d", i+1), fmt.Sprintf("fd00:96::%d", i+1)
	if g.odd() {
		v4 = fmt.Sprintf("010.096.000.00%d", i+1)
	}
	switch g.Rand.IntN(5) {
	case 0, 1:
		spec.ClusterIPs, spec.IPFamilies = []string{v4}, []corev1.IPFamily{corev1.IPv4Protocol}
	case 2:
		spec.ClusterIPs, spec.IPFamilies = []string{v6}, []corev1.IPFamily{corev1.IPv6Protocol}
	case 3:
		spec.ClusterIPs, spec.IPFamilies = []string{v4, v6}, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	case 4:
		spec.ClusterIPs, spec.IPFamilies = []string{v6, v4}, []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}
	}
	spec.ClusterIP = spec.ClusterIPs[0]
	switch {
	case g.chance(0.04):
		spec.ClusterIP, spec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
	case g.chance(0.02):
		spec.ClusterIP, spec.ClusterIPs = "", nil // not allocated yet
	case len(spec.ClusterIPs) == 1 && g.chance(0.1): // as objects from before dual stack are
		spec.ClusterIPs, spec.IPFamilies = nil, nil
	}
}

// portNames meet those of slices.
var portNames = []string{"http", "https", "dns"}

func (g *Generator) ports(i int, spec *corev1.ServiceSpec) {
	count := 1 + g.Rand.IntN(3)
	numbers := g.Rand.Perm(4)
	for n := range count {
		p := corev1.ServicePort{
			Name:     portNames[n],
			Protocol: g.protocol(),
			Port:     []int32{53, 80, 443, 8080}[numbers[n]],
		}
		if count == 1 && g.chance(0.4) {
			p.Name = ""
		}
		if count > 1 && n == 1 && g.chance(0.3) { // one number, two protocols
			p.Port = spec.Ports[0].Port
			if p.Protocol == spec.Ports[0].Protocol || p.Protocol == "" || spec.Ports[0].Protocol == "" {
				spec.Ports[0].Protocol, p.Protocol = corev1.ProtocolUDP, corev1.ProtocolTCP
			}
		}
		if spec.Type != corev1.ServiceTypeClusterIP && g.chance(0.9) {
			p.NodePort = int32(30000 + 10*i + n)
		}
		spec.Ports = append(spec.Ports, p)
	}
}

func (g *Generator) protocol() corev1.Protocol {
	if g.odd() {
		return ""
	}
	return pick(g, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
}

func (g *Generator) affinity(spec *corev1.ServiceSpec) {
	spec.SessionAffinity = corev1.ServiceAffinityNone
	if g.chance(0.7) {
		return
	}
	spec.SessionAffinity = corev1.ServiceAffinityClientIP
	timeout := pick(g, int32(1), 10800, 86400)
	if g.odd() {
		timeout = pick(g, int32(0), -1, 100_000)
	}
	spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
	if g.odd() {
		spec.SessionAffinityConfig = nil
	}
}

func (g *Generator) loadBalancer(i int, svc *corev1.Service) {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer && g.chance(0.9) {
		return
	}
	for n := range g.Rand.IntN(3) {
		in := corev1.LoadBalancerIngress{
			IP:     pick(g, fmt.Sprintf("1.2.%d.%d", i, n+4), fmt.Sprintf("2001:db8:%d::%d", i, n+4)),
			IPMode: maybe(g, corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy),
		}
		if g.chance(0.1) {
			in.Hostname, in.IP, in.IPMode = "lb.example.com", "", nil
		}
		svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, in)
	}
	if len(svc.Spec.ExternalIPs) > 0 && g.chance(0.1) { // both at once
		svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: svc.Spec.ExternalIPs[0]})
	}
	if g.odd() {
		svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress,
			corev1.LoadBalancerIngress{IP: pick(g, "127.0.0.8", "224.0.0.8", "::1", "0.0.0.0", fmt.Sprintf("169.254.0.%d", i+8))})
	}
	if g.chance(0.5) {
		for range g.Rand.IntN(3) {
			svc.Spec.LoadBalancerSourceRanges = append(svc.Spec.LoadBalancerSourceRanges,
				pick(g, "203.0.113.0/24", " 198.51.100.7/32", "2001:db8:1::/64 ", "203.0.113.0/24", "0.0.0.0/0", "::/0", "10.1.2.3/8"))
		}
		if g.odd() {
			svc.Spec.LoadBalancerSourceRanges = append(svc.Spec.LoadBalancerSourceRanges, pick(g, "203.0.113.7", "nonsense", "10.0.0.0/33", "", "010.0.0.0/8"))
		}
	}
	if svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && g.chance(0.9) {
		svc.Spec.HealthCheckNodePort = int32(31000 + i)
	}
}

// slice makes the slice with a number for a Service.
func (g *Generator) slice(i int, svc *corev1.Service) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: svc.Namespace, Name: fmt.Sprintf("%s-%d", svc.Name, i),
			Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name},
		},
		AddressType: pick(g, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6),
	}
	if g.chance(0.02) {
		s.AddressType = discoveryv1.AddressTypeFQDN
	}
	if g.chance(0.03) {
		s.Labels[corev1.IsHeadlessService] = ""
	}
	if g.odd() {
		s.Labels[services.LabelProxyName] = "mesh"
	}
	for _, sp := range svc.Spec.Ports {
		if g.chance(0.85) {
			s.Ports = append(s.Ports, g.endpointPort(sp.Name, sp.Protocol))
		}
	}
	if g.chance(0.1) {
		s.Ports = append(s.Ports, g.endpointPort("other", corev1.ProtocolTCP))
	}
	if g.chance(0.05) { // one name, two protocols
		s.Ports = append(s.Ports, g.endpointPort(portNames[0], g.protocol()))
	}
	for range g.Rand.IntN(6) {
		s.Endpoints = append(s.Endpoints, g.endpoint(s.AddressType))
	}
	return s
}

func (g *Generator) endpointPort(name string, protocol corev1.Protocol) discoveryv1.EndpointPort {
	number := pick(g, int32(8080), 8080, 8080, 8443, 53)
	p := discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number}
	switch {
	case g.chance(0.03):
		p.Port = nil
	case g.chance(0.03):
		p.Protocol = new(g.protocol())
	case g.odd():
		p.Name = nil
	case g.odd():
		p.Port = new(int32(0))
	case g.odd():
		p.Protocol = nil
	}
	return p
}

func (g *Generator) endpoint(family discoveryv1.AddressType) discoveryv1.Endpoint {
	ep := discoveryv1.Endpoint{
		Addresses:  []string{g.address(family)},
		Conditions: g.conditions(),
		NodeName:   maybe(g, nodes[0], nodes[0], nodes[1], nodes[2]),
		Zone:       maybe(g, zones...),
	}
	if g.chance(0.1) { // interchangeable with the first
		ep.Addresses = append(ep.Addresses, g.address(family))
	}
	if g.odd() {
		ep.Addresses = nil
	}
	if g.chance(0.7) {
		ep.Hints = &discoveryv1.EndpointHints{}
		for range min(g.Rand.IntN(4), 2) {
			ep.Hints.ForZones = append(ep.Hints.ForZones, discoveryv1.ForZone{Name: pick(g, zones...)})
		}
		for range min(g.Rand.IntN(4), 2) {
			ep.Hints.ForNodes = append(ep.Hints.ForNodes, discoveryv1.ForNode{Name: pick(g, nodes...)})
		}
	}
	return ep
}

// conditions are any, or those of a pod that is well, which make hints count.
func (g *Generator) conditions() discoveryv1.EndpointConditions {
	if g.chance(0.4) {
		return discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)}
	}
	return discoveryv1.EndpointConditions{Ready: maybe(g, false, false, true), Serving: maybe(g, true, false), Terminating: maybe(g, true, false)}
}

func (g *Generator) address(family discoveryv1.AddressType) string {
	n := 1 + g.Rand.IntN(6)
	switch {
	case g.odd():
		return pick(g, "127.0.0.1", "::1", "169.254.1.1", "fe80::1", "224.0.0.1", "ff02::1", "0.0.0.0", "::",
			"10.0.0.1", "fd00::1", "nonsense", "", "010.0.0.01", "::ffff:10.0.0.1", "255.255.255.255")
	case family == discoveryv1.AddressTypeIPv4:
		return fmt.Sprintf("10.0.%d.%d", n%3, n)
	case family == discoveryv1.AddressTypeIPv6:
		return fmt.Sprintf("fd00:0:%d::%d", n%3, n)
	}
	return "backend.example.com"
}

// Change makes a world that differs from another by the node or one object, which it shares no memory with.
func (g *Generator) Change(w *World) *World {
	out := &World{Node: w.Node, Services: append([]*corev1.Service(nil), w.Services...), Slices: append([]*discoveryv1.EndpointSlice(nil), w.Slices...)}
	n := g.Rand.IntN(11)
	switch {
	case n == 10:
		out.Node = g.node()
	case n == 0 && len(out.Services) > 1:
		out.Services = without(out.Services, g.Rand.IntN(len(out.Services)))
	case n == 1 && len(out.Slices) > 0:
		out.Slices = without(out.Slices, g.Rand.IntN(len(out.Slices)))
	case n < 5:
		g.replaceService(out)
	case n < 7:
		g.replaceSlice(out)
	default:
		g.changeEndpoint(out)
	}
	return out
}

// replaceService makes one of the Services anew, whether it is there or not.
func (g *Generator) replaceService(w *World) {
	svc := g.service(g.Rand.IntN(len(names)))
	for i := range w.Services {
		if nameOf(w.Services[i]) == nameOf(svc) {
			w.Services[i] = svc
			return
		}
	}
	w.Services = append(w.Services, svc)
}

// replaceSlice makes one of the slices anew. It stays with its Service: one that moves leaves kube-proxy with the
// endpoints at both (EndpointsChangeTracker never learns that it left).
func (g *Generator) replaceSlice(w *World) {
	s := g.slice(g.Rand.IntN(8), pick(g, w.Services...))
	for i := range w.Slices {
		if nameOf(w.Slices[i]) == nameOf(s) {
			s.AddressType = w.Slices[i].AddressType // which cannot be changed
			for j := range s.Endpoints {
				s.Endpoints[j] = g.endpoint(s.AddressType)
			}
			w.Slices[i] = s
			return
		}
	}
	w.Slices = append(w.Slices, s)
}

// changeEndpoint makes one endpoint anew.
func (g *Generator) changeEndpoint(w *World) {
	if len(w.Slices) == 0 {
		return
	}
	i := g.Rand.IntN(len(w.Slices))
	s := w.Slices[i].DeepCopy()
	w.Slices[i] = s
	if len(s.Endpoints) == 0 {
		s.Endpoints = append(s.Endpoints, g.endpoint(s.AddressType))
		return
	}
	s.Endpoints[g.Rand.IntN(len(s.Endpoints))] = g.endpoint(s.AddressType)
}
