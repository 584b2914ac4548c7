package oracle

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/runtime/services"
)

// plain is a world without any difference: a Service with an endpoint here and one elsewhere.
func plain() *World {
	name, tcp, number := "http", corev1.ProtocolTCP, int32(8080)
	endpoint := func(addr, node string) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node}
	}
	return &World{
		Node: services.Node{Name: nodes[0]},
		Services: []*corev1.Service{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.1",
				Ports: []corev1.ServicePort{{Name: name, Protocol: tcp, Port: 80}},
			},
			Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "1.2.3.4"}}}},
		}},
		Slices: []*discoveryv1.EndpointSlice{{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &tcp, Port: &number}},
			Endpoints:   []discoveryv1.Endpoint{endpoint("10.0.0.1", nodes[0]), endpoint("10.0.0.2", nodes[1])},
		}},
	}
}

// examples have one difference each, in the order of Differences.
var examples = []func(w *World, svc *corev1.ServiceSpec, slice *discoveryv1.EndpointSlice){
	func(w *World, svc *corev1.ServiceSpec, slice *discoveryv1.EndpointSlice) {
		slice.Labels[services.LabelProxyName] = "mesh"
	},
	func(w *World, svc *corev1.ServiceSpec, slice *discoveryv1.EndpointSlice) {
		slice.Ports[0].Protocol = nil
	},
	func(w *World, svc *corev1.ServiceSpec, slice *discoveryv1.EndpointSlice) {
		svc.SessionAffinity = corev1.ServiceAffinityClientIP
	},
	func(w *World, svc *corev1.ServiceSpec, slice *discoveryv1.EndpointSlice) {
		svc.LoadBalancerSourceRanges = []string{"nonsense"}
	},
	func(w *World, svc *corev1.ServiceSpec, slice *discoveryv1.EndpointSlice) {
		svc.ExternalIPs = []string{"169.254.169.254"}
	},
	func(w *World, svc *corev1.ServiceSpec, slice *discoveryv1.EndpointSlice) {
		slice.Endpoints[1].Addresses[0] = "127.0.0.1"
	},
	func(w *World, svc *corev1.ServiceSpec, slice *discoveryv1.EndpointSlice) {
		slice.Endpoints[1] = *slice.Endpoints[0].DeepCopy()
		slice.Endpoints[1].Conditions.Ready = new(false)
	},
	func(w *World, svc *corev1.ServiceSpec, slice *discoveryv1.EndpointSlice) {
		w.Services[0].Name, slice.Labels[discoveryv1.LabelServiceName] = "kubernetes", "kubernetes"
		svc.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
		slice.Endpoints = slice.Endpoints[1:]
	},
}

func TestEveryDifferenceIsOneAndExcusesItself(t *testing.T) {
	w := plain()
	if theirs, err := Theirs(w); err != nil || !Equal(theirs, Ours(w)) {
		t.Fatalf("the plain world (-kube-proxy +we): %v\n%s", err, Diff(theirs, Ours(w)))
	}
	if len(examples) != len(Differences) {
		t.Fatalf("%d examples of %d differences", len(examples), len(Differences))
	}
	for i, d := range Differences {
		w := plain()
		examples[i](w, &w.Services[0].Spec, w.Slices[0])
		ours := Ours(w)
		e := Explain(w, ours)
		if !e.OK {
			t.Errorf("%s: not explained (-kube-proxy +we): %v\n%s", d.Name, e.Panic, Diff(e.Theirs, ours))
		}
		if !Needs(w, ours, i) {
			t.Errorf("%s: is not needed in its example", d.Name)
		}
		if len(e.Applied) != 1 || e.Applied[0] != i {
			t.Errorf("%s: the example has the differences %v, want %d alone", d.Name, e.Applied, i)
		}
	}
}

func TestEveryDifferenceHasAReason(t *testing.T) {
	seen := map[string]bool{}
	for i, d := range Differences {
		if d.Name == "" || len(strings.Fields(d.Reason)) < 5 || seen[d.Name] {
			t.Errorf("difference %d, %q: wants a name of its own and a reason", i, d.Name)
		}
		if d.Pick != nil && i != len(Differences)-1 {
			t.Errorf("%q: only the last can have Pick", d.Name)
		}
		seen[d.Name] = true
	}
}

// TestMinimise looks for what matters in a world of many things.
func TestMinimise(t *testing.T) {
	w := plain()
	w.Services = append(w.Services, plain().Services[0])
	w.Services[1].Name = "more"
	w.Slices[0].Endpoints[1].Conditions.Ready = new(false)
	got := Minimise(w, func(w *World) bool {
		for _, s := range w.Slices {
			for _, ep := range s.Endpoints {
				if ep.Conditions.Ready != nil {
					return true
				}
			}
		}
		return false
	})
	if len(got.Services) != 0 || len(got.Slices) != 1 || len(got.Slices[0].Endpoints) != 1 || len(got.Slices[0].Ports) != 0 {
		t.Errorf("got more than the endpoint that is not ready:\n%s", got.YAML())
	}
}
