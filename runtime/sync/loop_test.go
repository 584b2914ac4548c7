package sync

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/test/lab"
)

func TestLoopNodePortsFollowHostAddrs(t *testing.T) {
	r := newRig(t)
	svc := service("web", "10.96.1.1", 80, corev1.ProtocolTCP)
	svc.Spec.Type, svc.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
	r.tell(svc, slice("web", 80, corev1.ProtocolTCP, "10.0.0.1"))
	r.l.SetHostAddrs(hostAddrs("127.0.0.1/8", "192.0.2.1/24"))
	r.syncAll()
	r.flush()
	r.want("192.0.2.1:30080", "[10.0.0.1:80]")
	r.want("127.0.0.1:30080", "[10.0.0.1:80]")
	r.l.SetHostAddrs(hostAddrs("127.0.0.1/8", "192.0.2.2/24"))
	r.flush()
	r.want("192.0.2.1:30080", "not a frontend")
	r.want("192.0.2.2:30080", "[10.0.0.1:80]")
}

func TestLoopTakesTheZoneOfTheNode(t *testing.T) {
	r := newRig(t)
	s := slice("web", 80, corev1.ProtocolTCP, "10.0.0.1", "10.0.0.2")
	for i, zone := range []string{"a", "b"} {
		s.Endpoints[i].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
	}
	r.tell(service("web", "10.96.1.1", 80, corev1.ProtocolTCP), s)
	r.syncAll()
	r.flush()
	r.want("10.96.1.1:80", "[10.0.0.1:80 10.0.0.2:80]")
	r.tell(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-a", Labels: map[string]string{corev1.LabelTopologyZone: "b"}}})
	r.flush()
	r.want("10.96.1.1:80", "[10.0.0.2:80]")
}

// The loop itself: woken, it writes; what waits is seen from outside.
func TestLoopWritesWhenItIsNotified(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.l.Run(ctx); close(done) }()
	r.tell(kubernetes("192.0.2.10")...)
	if r.l.liveness.Waiting().IsZero() {
		t.Error("nothing waits, though nothing can have been written")
	}
	r.syncAll()
	lab.Await(t, "it is written", func() bool { return r.l.liveness.Waiting().IsZero() })
	cancel()
	<-done
	r.want("10.96.0.1:443", "[192.0.2.10:6443]")
}

// A frontend that goes from one Service to another is in two changes: a flush between them would take it away.
func TestLoopQueuesWhatBelongsTogetherAtOnce(t *testing.T) {
	r := newRig(t)
	older, younger := service("older", "10.96.1.1", 80, corev1.ProtocolTCP), service("younger", "10.96.1.2", 80, corev1.ProtocolTCP)
	older.CreationTimestamp, younger.CreationTimestamp = metav1.Unix(1, 0), metav1.Unix(2, 0)
	for _, s := range []*corev1.Service{older, younger} {
		s.Spec.ExternalIPs = []string{"198.51.100.1"}
	}
	r.tell(older, younger, slice("older", 80, corev1.ProtocolTCP, "10.0.0.1"), slice("younger", 80, corev1.ProtocolTCP, "10.0.0.2"))
	r.syncAll()
	r.flush()
	r.want("198.51.100.1:80", "[10.0.0.1:80]")
	before, changes := len(published[Queued](r)), len(published[PortsChanged](r))
	r.l.Handle([]watch.Event{{Resource: watch.Services, Name: types.NamespacedName{Namespace: "default", Name: "older"}}})
	if queued, changed := len(published[Queued](r))-before, len(published[PortsChanged](r))-changes; queued != 1 || changed != 2 {
		t.Errorf("%d changes were queued in %d steps, want 2 in 1", changed, queued)
	}
	r.flush()
	r.want("198.51.100.1:80", "[10.0.0.2:80]")
}

func TestNodeMissingIsReported(t *testing.T) {
	r := newRig(t)
	if got := r.l.NodeMissing(); got != "" {
		t.Errorf("before the API has told: %q", got)
	}
	r.sync(watch.Nodes)
	if got := r.l.NodeMissing(); !strings.Contains(got, "no Node node-a") || !strings.Contains(got, "--node-name") {
		t.Errorf("a Node that does not exist: %q", got)
	}
	r.tell(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-a"}})
	if got := r.l.NodeMissing(); got != "" {
		t.Errorf("it has come: %q", got)
	}
	r.l.Handle([]watch.Event{{Resource: watch.Nodes, Name: types.NamespacedName{Name: "node-a"}}})
	if got := r.l.NodeMissing(); got == "" {
		t.Error("it has gone, and nothing tells")
	}
}
