package running

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/test/kube/cluster"
	"github.com/firsthop/firsthop/test/kube/running/probe"
)

// site is a cluster with one node and pods elsewhere, of which every address answers on two ports.
type site struct {
	t       testing.TB
	cluster *cluster.Cluster
	node    *node
	pod     *prober // in a pod of the node
	host    *prober // on the node itself
	fence   *fence
}

// The ports of pods elsewhere.
const firstPort, secondPort = fencePort, 881

func newSite(t testing.TB, servers int) *site {
	t.Helper()
	s := &site{t: t, cluster: cluster.New(t, cluster.Config{Servers: servers})}
	for _, name := range []string{"net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"} {
		if err := s.cluster.Hub.Sysctl(name, "0"); err != nil {
			t.Fatal(err)
		}
	}
	serveRemote(t, s.cluster, firstPort, secondPort)
	s.useNode(here)
	return s
}

// useNode makes a new node that of the site.
func (s *site) useNode(name string) {
	s.t.Helper()
	s.node = newNode(s.t, s.cluster, name, ownZone)
	pod, err := s.node.AddPod("pod", s.node.Pod(1)...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.pod, s.host = newProber(s.t, pod), newProber(s.t, s.node.Lab)
	if s.fence == nil {
		s.fence = newFence(s.t, s.cluster, s.pod)
	}
	s.fence.p = s.pod
}

// service creates a NodePort Service whose endpoints are pods elsewhere, given by their numbers.
func (s *site) service(name string, numbers ...int) *corev1.Service {
	s.t.Helper()
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}}
	svc.Spec.Type = corev1.ServiceTypeNodePort
	svc.Spec.Ports = []corev1.ServicePort{sp("http", corev1.ProtocolTCP, 80, firstPort)}
	s.cluster.Apply(svc, sliceOf(svc, numbers...))
	return svc
}

// sliceOf is the EndpointSlice of a Service with one port.
func sliceOf(svc *corev1.Service, numbers ...int) *discoveryv1.EndpointSlice {
	port := svc.Spec.Ports[0]
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: svc.Name, Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new(port.Name), Protocol: new(port.Protocol), Port: new(port.TargetPort.IntVal)}},
	}
	for _, n := range numbers {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{remoteAddr(0, n).String()}, NodeName: new(there)})
	}
	return slice
}

// load are clients that don't stop: each kind of connection to one Service.
type load []*stream

// every is the time between two attempts of a client of load, in milliseconds.
const every = 10

func (s *site) load(svc *corev1.Service) load {
	cluster := svc.Spec.ClusterIP + ":80"
	return load{
		s.pod.keep(probe.TCP, cluster, every), s.host.keep(probe.TCP, cluster, every),
		s.host.keep(probe.TCP, loopbackOf(svc), every), s.pod.keep(probe.Kept, cluster, every),
	}
}

// end ends the clients. None may have failed, nor have got nothing done.
func (l load) end(t testing.TB) {
	t.Helper()
	for _, s := range l {
		results := s.end()
		if bad := failures(results); bad != "" || len(results) < 10 {
			t.Errorf("of %d attempts, %s: %s", len(results), s.what, bad)
		}
	}
}
