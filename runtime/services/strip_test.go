package services

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var _ func(any) (any, error) = new(Stripper).Strip // cache.TransformFunc

// What is stripped asks for the same, of every node.
func TestStripKeepsTheMeaning(t *testing.T) {
	strip := &Stripper{}
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 3))
		svc, node := randomService(r), randomNode(r)
		var sls, stripped []*discoveryv1.EndpointSlice
		for range r.IntN(4) {
			s := fat(randomSlice(r))
			sls = append(sls, s)
			stripped = append(stripped, mustStrip(t, strip, s.DeepCopy()))
		}
		ranges := svc.Annotations
		fatMeta(&svc.ObjectMeta)
		maps.Copy(svc.Annotations, ranges)
		fatSpec(svc)
		want, wantProblems := Ports(svc, sls, node)
		got, problems := Ports(mustStrip(t, strip, svc.DeepCopy()), stripped, node)
		if !EqualPorts(got, want) {
			t.Fatalf("seed %d: stripped it wants\n%v\nwhole\n%v", seed, got, want)
		}
		if !slices.Equal(problems, wantProblems) {
			t.Fatalf("seed %d: stripped its problems are\n%v\nwhole\n%v", seed, problems, wantProblems)
		}
	}
}

func mustStrip[T any](t testing.TB, s *Stripper, obj T) T {
	t.Helper()
	out, err := s.Strip(obj)
	if err != nil {
		t.Fatal(err)
	}
	return out.(T)
}

func fatMeta(m *metav1.ObjectMeta) {
	m.UID, m.ResourceVersion = "1-2-3", "77"
	m.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "{}", "firsthop.io/mode": "dsr"}
	m.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
	m.OwnerReferences = []metav1.OwnerReference{{Name: "owner"}}
	m.Finalizers = []string{"f"}
	if m.Labels == nil {
		m.Labels = map[string]string{}
	}
	m.Labels["app"] = "web"
}

func fatSpec(svc *corev1.Service) {
	svc.Spec.Selector = map[string]string{"app": "web"}
	svc.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicySingleStack)
	svc.Spec.LoadBalancerClass = new("class")
	for i := range svc.Spec.Ports {
		svc.Spec.Ports[i].AppProtocol = new("h2c")
	}
	svc.Status.Conditions = []metav1.Condition{{Type: "Ready"}}
}

func fat(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	fatMeta(&s.ObjectMeta)
	for i := range s.Endpoints {
		ep := &s.Endpoints[i]
		ep.Hostname, ep.Zone = new("h"), new("zone-c")
		ep.TargetRef = &corev1.ObjectReference{Kind: "Pod", Name: fmt.Sprint("web-", i)}
		ep.DeprecatedTopology = map[string]string{"a": "b"}
		ep.Addresses = append(ep.Addresses, "10.99.99.99")
	}
	return s
}

func TestStripRemovesWhatIsNotUsed(t *testing.T) {
	strip := &Stripper{Annotations: []string{"firsthop.io/mode"}}
	svc := everyKind()
	fatMeta(&svc.ObjectMeta)
	fatSpec(svc)
	svc.Annotations[NodePortRangesAnnotation] = "true"
	mustStrip(t, strip, svc)
	want := everyKind()
	want.Spec.ClusterIPs = nil
	want.UID, want.ResourceVersion = "1-2-3", "77"
	want.Annotations = map[string]string{"firsthop.io/mode": "dsr", NodePortRangesAnnotation: "true"}
	if !reflect.DeepEqual(svc, want) {
		t.Errorf("of a Service, this stays: %+v\nwant %+v", svc, want)
	}

	sl := fat(slice("1", "web", "http:80/tcp", "10.0.0.1 local zone=a node=x", "10.0.0.2 terminating zone=a zone=b"))
	mustStrip(t, strip, sl)
	wantSlice := slice("1", "web", "http:80/tcp", "10.0.0.1 local zone=a node=x", "10.0.0.2 terminating zone=a zone=b")
	wantSlice.UID, wantSlice.ResourceVersion = "1-2-3", "77"
	wantSlice.Annotations = map[string]string{"firsthop.io/mode": "dsr"}
	if !reflect.DeepEqual(sl, wantSlice) {
		t.Errorf("of a slice, this stays: %+v\nwant %+v", sl, wantSlice)
	}
}

func TestStripNodesAndPods(t *testing.T) {
	strip := &Stripper{}
	node := &corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler"}}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Address: "10.0.0.1"}}, Images: []corev1.ContainerImage{{SizeBytes: 1}}}}
	node.Name, node.Labels = "n", map[string]string{corev1.LabelTopologyZone: "zone-a"}
	mustStrip(t, strip, node)
	if node.Name != "n" || node.Labels[corev1.LabelTopologyZone] != "zone-a" || len(node.Spec.Taints) != 1 || len(node.Status.Addresses) != 1 || len(node.Status.Images) != 0 {
		t.Errorf("of a node, this stays: %+v", node)
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{NodeName: "n", HostNetwork: true, Containers: []corev1.Container{{Name: "c"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}}}}
	fatMeta(&pod.ObjectMeta)
	mustStrip(t, strip, pod)
	if !pod.Spec.HostNetwork || pod.Spec.NodeName != "n" || len(pod.Spec.Containers) != 0 || len(pod.Status.PodIPs) != 1 ||
		pod.UID != types.UID("1-2-3") || pod.Labels != nil || pod.Annotations != nil {
		t.Errorf("of a pod, this stays: %+v", pod)
	}
}

func TestStripIsIdempotent(t *testing.T) {
	strip := &Stripper{}
	sl := mustStrip(t, strip, fat(slice("1", "web", "http:80/tcp", "10.0.0.1 local zone=a")))
	once := sl.DeepCopy()
	if mustStrip(t, strip, sl); !reflect.DeepEqual(sl, once) {
		t.Errorf("twice it is %+v, once %+v", sl, once)
	}
	for _, other := range []any{nil, "text", struct{ Obj any }{sl} /* a tombstone */} {
		if got, err := strip.Strip(other); err != nil || !reflect.DeepEqual(got, other) {
			t.Errorf("%v becomes %v (%v)", other, got, err)
		}
	}
}

// Two slices that say the same of a node share it.
func TestStripSharesValues(t *testing.T) {
	strip := &Stripper{}
	a := mustStrip(t, strip, slice("1", "web", "http:80/tcp", "10.0.0.1 local zone=a terminating"))
	b := mustStrip(t, strip, slice("2", "web", "http:80/tcp", "10.0.0.2 local zone=a terminating"))
	x, y := a.Endpoints[0], b.Endpoints[0]
	if x.NodeName != y.NodeName || x.Hints != y.Hints || x.Conditions.Ready != y.Conditions.Ready || a.Ports[0].Name != b.Ports[0].Name {
		t.Error("they have copies of their own")
	}
	room := append(make([]discoveryv1.Endpoint, 0, 16), endpointOf("10.0.0.1 local"), endpointOf("10.0.0.2"))
	c := &discoveryv1.EndpointSlice{Endpoints: room}
	if mustStrip(t, strip, c); cap(c.Endpoints) != 2 || c.Endpoints[1].Addresses[0] != "10.0.0.2" {
		t.Errorf("decoding left room for %d, of which stays %d: %v", cap(room), cap(c.Endpoints), c.Endpoints)
	}
	if x.Conditions.Ready == x.Conditions.Serving || *x.Conditions.Ready || !*x.Conditions.Serving {
		t.Errorf("ready %t, serving %t", *x.Conditions.Ready, *x.Conditions.Serving)
	}
}
