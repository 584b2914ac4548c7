package oracle

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/apis"

	"github.com/firsthop/firsthop/runtime/services"
)

// Theirs asks kube-proxy's packages about a world. The error is a panic of theirs.
func Theirs(w *World) (Result, error) {
	p := newKubeProxy(w.Node)
	for _, c := range changes(&World{}, w) {
		p.follow(c)
	}
	return p.result()
}

// kubeProxy is what kube-proxy (k8s.io/kubernetes/pkg/proxy, v1.36) keeps of the world, without the rules that it makes
// of it: what cmd/kube-proxy/app/server.go lets through, its change trackers, and their maps.
type kubeProxy struct {
	node     services.Node
	families [2]family // IPv4, IPv6
	// They are the labels that server.go selects Services and EndpointSlices by. Its field selector, which leaves out
	// Services with clusterIP None, does what the tracker does once more.
	services, slices labels.Selector
	// panicked is what a change led to. It leaves the trackers halfway: they are of no use any more.
	panicked error
}

// family is one of its proxiers: it has one for each family of addresses.
type family struct {
	services     *proxy.ServiceChangeTracker
	endpoints    *proxy.EndpointsChangeTracker
	serviceMap   proxy.ServicePortMap
	endpointsMap proxy.EndpointsMap
}

func newKubeProxy(node services.Node) *kubeProxy {
	k := &kubeProxy{node: node, services: lacking(apis.LabelServiceProxyName), slices: lacking(corev1.IsHeadlessService)}
	for i, f := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
		k.families[i] = family{
			services:     proxy.NewServiceChangeTracker(f, nil, nil),
			endpoints:    proxy.NewEndpointsChangeTracker(f, node.Name, nil, nil),
			serviceMap:   proxy.ServicePortMap{},
			endpointsMap: proxy.EndpointsMap{},
		}
	}
	return k
}

// lacking selects what does not have a label.
func lacking(label string) labels.Selector {
	r, err := labels.NewRequirement(label, selection.DoesNotExist, nil)
	if err != nil {
		panic(err) // the label is a constant
	}
	return labels.NewSelector().Add(*r)
}

// follow tells the trackers of a change, as a watch with the selectors would: what ceases to match is deleted.
func (k *kubeProxy) follow(c change) {
	defer k.recover()
	for i := range k.families {
		f := &k.families[i]
		if older, newer := matching(k.services, c.oldService), matching(k.services, c.newService); older != nil || newer != nil {
			f.services.Update(older, newer)
		}
		older, newer := matching(k.slices, c.oldSlice), matching(k.slices, c.newSlice)
		switch {
		case newer != nil:
			f.endpoints.EndpointSliceUpdate(newer, false)
		case older != nil:
			f.endpoints.EndpointSliceUpdate(older, true)
		}
	}
}

// matching is the object if the selector selects it, else nil.
func matching[P interface {
	*T
	GetLabels() map[string]string
}, T any](s labels.Selector, o P) P {
	if o == nil || !s.Matches(labels.Set(o.GetLabels())) {
		return nil
	}
	return o
}

// result applies what the trackers have gathered and says what the proxiers would make of it.
func (k *kubeProxy) result() (Result, error) {
	out := k.apply()
	return out, k.panicked
}

func (k *kubeProxy) recover() {
	if r := recover(); r != nil {
		k.panicked = fmt.Errorf("kube-proxy panics: %v", r)
	}
}

func (k *kubeProxy) apply() Result {
	defer k.recover()
	out := Result{}
	for i := range k.families {
		f := &k.families[i]
		f.serviceMap.Update(f.services)
		f.endpointsMap.Update(f.endpoints)
		ready := f.endpointsMap.LocalReadyEndpoints()
		for name, info := range f.serviceMap {
			key := PortKey{name.Namespace, name.Name, name.Port, strings.ToLower(string(name.Protocol)), i == 1}
			p := k.port(info, f.endpointsMap[name])
			if n := info.HealthCheckNodePort(); n != 0 {
				p.Health = Health{n, ready[name.NamespacedName]}
			}
			out[key] = p
		}
	}
	return out
}

// port does what syncProxyRules of the nftables proxier (pkg/proxy/nftables/proxier.go) does for a port, up to the
// point where it writes rules.
func (k *kubeProxy) port(info proxy.ServicePort, all []proxy.Endpoint) Port {
	zone := map[string]string{corev1.LabelTopologyZone: k.node.Zone}
	clusterEndpoints, localEndpoints, _, anywhere := proxy.CategorizeEndpoints(all, info, k.node.Name, zone)
	cluster, local := choose(endpointTexts(clusterEndpoints), anywhere), choose(endpointTexts(localEndpoints), anywhere)

	p := Port{Frontends: map[Frontend]Reach{}}
	if info.SessionAffinityType() == corev1.ServiceAffinityClientIP {
		p.Affinity = info.StickyMaxAgeSeconds()
	}
	for _, ep := range all { // as pkg/proxy/conntrack does
		if ep.IsServing() {
			p.Serving = append(p.Serving, ep.String())
		}
	}
	slices.Sort(p.Serving)

	internal := Reach{Kind: services.ClusterIP, Inside: cluster, Outside: cluster}
	if info.InternalPolicyLocal() {
		internal.Inside, internal.Outside = local, local
	}
	external := Reach{Inside: cluster, Outside: cluster} // pods and the node itself are short-circuited
	if info.ExternalPolicyLocal() {
		external.Outside = local
	}
	proto := strings.ToLower(string(info.Protocol()))
	p.add(frontend(info.ClusterIP(), info.Port(), proto), internal)
	limited := external
	limited.Kind = services.LoadBalancerIP
	if ranges := info.LoadBalancerSourceRanges(); len(ranges) > 0 {
		limited.Limited, limited.Ranges = true, prefixes(ranges)
	}
	// Before external IPs: where an address is both, it is in the nftables proxier's map of what ranges limit.
	for _, ip := range info.LoadBalancerVIPs() {
		p.add(frontend(ip, info.Port(), proto), limited)
	}
	external.Kind = services.ExternalIP
	for _, ip := range info.ExternalIPs() {
		p.add(frontend(ip, info.Port(), proto), external)
	}
	external.Kind = services.NodePort
	if info.NodePort() != 0 {
		for _, a := range k.nodePortAddrs(info.ClusterIP().To4() != nil) {
			p.add(Frontend{netip.AddrPortFrom(a, uint16(info.NodePort())), proto}, external)
		}
	}
	return p
}

// nodePortAddrs are those of one family that node ports are served on.
func (k *kubeProxy) nodePortAddrs(is4 bool) []netip.Addr {
	var out []netip.Addr
	for _, a := range k.node.NodePortAddrs {
		if a.Is4() != is4 {
			continue
		}
		if a.IsLoopback() { // see Frontend
			if a = netip.MustParseAddr("127.0.0.0"); !is4 {
				a = netip.MustParseAddr("::127.0.0.0")
			}
		}
		out = append(out, a)
	}
	return out
}

func frontend(ip net.IP, port int, proto string) Frontend {
	a, _ := netip.AddrFromSlice(ip)
	return Frontend{netip.AddrPortFrom(a.Unmap(), uint16(port)), proto}
}

func endpointTexts(list []proxy.Endpoint) []string {
	var out []string
	for _, ep := range list {
		out = append(out, ep.String())
	}
	return out
}

// prefixes are sorted, each once, without Nobody.
func prefixes(list []*net.IPNet) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range list {
		a, _ := netip.AddrFromSlice(n.IP)
		bits, _ := n.Mask.Size()
		if p := netip.PrefixFrom(a.Unmap(), bits); p != nobody4 && p != nobody6 {
			out = append(out, p)
		}
	}
	sortRanges(out)
	return slices.Compact(out)
}

// change is what happens to one object: it comes, changes, or goes.
type change struct {
	oldService, newService *corev1.Service
	oldSlice, newSlice     *discoveryv1.EndpointSlice
}

// changes are what happens on the way from one world to another with the same node. Objects that are the same pointer
// do not change.
func changes(from, to *World) []change {
	var out []change
	for _, newer := range to.Services {
		older := find(from.Services, newer)
		if older != newer {
			out = append(out, change{oldService: older, newService: newer})
		}
	}
	for _, older := range from.Services {
		if find(to.Services, older) == nil {
			out = append(out, change{oldService: older})
		}
	}
	for _, newer := range to.Slices {
		older := find(from.Slices, newer)
		if older != newer {
			out = append(out, change{oldSlice: older, newSlice: newer})
		}
	}
	for _, older := range from.Slices {
		if find(to.Slices, older) == nil {
			out = append(out, change{oldSlice: older})
		}
	}
	return out
}

// find returns the object of a list that has the name of another.
func find[P interface {
	*T
	GetNamespace() string
	GetName() string
}, T any](list []P, like P) P {
	for _, o := range list {
		if nameOf(o) == nameOf(like) {
			return o
		}
	}
	return nil
}
