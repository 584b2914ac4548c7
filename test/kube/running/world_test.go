package running

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/firsthop/firsthop/test/kube/cluster"
)

func intOrString(port int) intstr.IntOrString { return intstr.FromInt(port) }

// here is the node that is tested, in its zone; there is another one, which nobody runs.
const (
	here, there = "here", "there"
	ownZone     = "zone-a"
)

// pods are those that are endpoints, by name. The first two are real ones on the node; the others are the hub's, on
// whichever node their endpoint says.
var pods = []string{"p1", "p2", "p3", "p4", "p5", "p6"}

// podAddr is the address of a pod by family.
func (f *fixture) podAddr(name string, family int) netip.Addr {
	i := slices.Index(pods, name)
	switch {
	case i < 0:
		panic("no pod " + name)
	case i < 2:
		return f.node.Pod(i + 1)[family]
	}
	return remoteAddr(family, i+1)
}

// podName is the reverse: "p1:80" of an address. What is nobody's stays as it is.
func (f *fixture) podName(server string) string {
	addr, err := netip.ParseAddrPort(server)
	if err != nil {
		return server
	}
	for _, name := range pods {
		for family := range 2 {
			if f.podAddr(name, family) == addr.Addr() {
				return fmt.Sprintf("%s:%d", name, addr.Port())
			}
		}
	}
	return server
}

// endpoint is one pod as an EndpointSlice has it.
type endpoint struct {
	pod   string
	node  string   // "": here for p1 and p2, there for the others
	state string   // "": ready; "not ready", "terminating" (and serving), "gone" (terminating, not serving)
	zones []string // hints
	nodes []string // likewise
	slice string   // which slice of the Service it is in
}

// world is what a case puts into the API: one dual-stack Service with EndpointSlices of each family.
type world struct {
	svc       corev1.Service
	endpoints []endpoint
	// slicePorts are the ports that slices have: by name and protocol, as "http/TCP", the target port. A Service's
	// own are taken where there are none.
	slicePorts map[string]int32
	labels     map[string]string // more of them, for the slices
	absent     bool              // the Service is not there
}

// sp is a Service port.
func sp(name string, proto corev1.Protocol, port, target int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Protocol: proto, Port: port, TargetPort: intstr.FromInt32(target)}
}

func newWorld(name string) *world {
	return &world{svc: corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			IPFamilyPolicy: new(corev1.IPFamilyPolicyRequireDualStack),
			Ports:          []corev1.ServicePort{sp("http", corev1.ProtocolTCP, 80, 80)},
		},
	}}
}

func ep(names ...string) []endpoint {
	var list []endpoint
	for _, n := range names {
		list = append(list, endpoint{pod: n})
	}
	return list
}

// slices are the EndpointSlices, by name.
func (w *world) slices(f *fixture) map[string]*discoveryv1.EndpointSlice {
	ports := w.slicePorts
	if ports == nil {
		ports = map[string]int32{}
		for _, p := range w.svc.Spec.Ports {
			ports[p.Name+"/"+string(p.Protocol)] = p.TargetPort.IntVal
		}
	}
	out := map[string]*discoveryv1.EndpointSlice{}
	for family, kind := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		for _, e := range w.endpoints {
			name := fmt.Sprintf("%s-%d%s", w.svc.Name, family, e.slice)
			s := out[name]
			if s == nil {
				s = &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: name}, AddressType: kind}
				s.Labels = map[string]string{discoveryv1.LabelServiceName: w.svc.Name}
				maps.Copy(s.Labels, w.labels)
				for _, key := range slices.Sorted(maps.Keys(ports)) {
					port, proto, _ := strings.Cut(key, "/")
					s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &port, Protocol: new(corev1.Protocol(proto)), Port: new(ports[key])})
				}
				out[name] = s
			}
			s.Endpoints = append(s.Endpoints, e.object(f, family))
		}
	}
	return out
}

func (e endpoint) object(f *fixture, family int) discoveryv1.Endpoint {
	node := e.node
	if node == "" {
		node = there
		if e.pod == "p1" || e.pod == "p2" {
			node = here
		}
	}
	serving := e.state == "" || e.state == "terminating"
	o := discoveryv1.Endpoint{
		Addresses: []string{f.podAddr(e.pod, family).String()}, NodeName: &node,
		Conditions: discoveryv1.EndpointConditions{
			Ready: new(e.state == ""), Serving: &serving, Terminating: new(e.state == "terminating" || e.state == "gone"),
		},
	}
	if e.zones != nil || e.nodes != nil {
		o.Hints = &discoveryv1.EndpointHints{}
		for _, n := range e.nodes {
			o.Hints.ForNodes = append(o.Hints.ForNodes, discoveryv1.ForNode{Name: n})
		}
		for _, z := range e.zones {
			o.Hints.ForZones = append(o.Hints.ForZones, discoveryv1.ForZone{Name: z})
		}
	}
	return o
}

// put makes the API hold a world, and of the Service's slices only those of it.
func (w *world) put(f *fixture, c *cluster.Cluster) {
	f.t.Helper()
	ctx := f.t.Context()
	if w.absent {
		if err := c.Client.CoreV1().Services("default").Delete(ctx, w.svc.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			f.t.Fatal(err)
		}
	} else {
		w.svc.ResourceVersion = ""
		c.Apply(&w.svc)
	}
	want := w.slices(f)
	for name := range f.slices {
		if want[name] == nil && strings.HasPrefix(name, w.svc.Name+"-") {
			if err := c.Client.DiscoveryV1().EndpointSlices("default").Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
				f.t.Fatal(err)
			}
			delete(f.slices, name)
		}
	}
	for name, s := range want {
		f.slices[name] = true
		c.Apply(s)
	}
}
