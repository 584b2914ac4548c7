package sync

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Pods need not be known for source ranges that limit clients outside alone.
func TestSourceRangesForClientsInside(t *testing.T) {
	r := newRig(t)
	svc := service("web", "10.96.0.9", 80, corev1.ProtocolTCP)
	svc.Spec.ExternalIPs = []string{"203.0.113.1"}
	svc.Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/8"}
	r.tell(svc)
	if got := published[SourceRanges](r); len(got) > 0 {
		t.Errorf("with an external IP: %v", got)
	}
	svc = svc.DeepCopy()
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.2"}}
	r.tell(svc)
	r.syncAll()
	if got := published[SourceRanges](r); len(got) != 1 || !bool(got[0]) {
		t.Errorf("with a load balancer IP: %v", got)
	}
}
