package sync

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestLoopCountsPortsWithoutLocalEndpoints(t *testing.T) {
	r := newRig(t)
	want := func(what string, internal, external int) {
		t.Helper()
		if i, e := r.l.NoLocal(); i != internal || e != external {
			t.Errorf("%s: %d internal and %d external, want %d and %d", what, i, e, internal, external)
		}
	}
	svc := service("web", "10.96.1.1", 80, corev1.ProtocolTCP)
	local := corev1.ServiceInternalTrafficPolicyLocal
	svc.Spec.InternalTrafficPolicy = &local
	r.tell(svc)
	want("no endpoints at all: refused, not dropped", 0, 0)
	elsewhere := slice("web", 80, corev1.ProtocolTCP, "10.0.0.1")
	r.tell(elsewhere)
	want("the only one is elsewhere", 1, 0)

	both := svc.DeepCopy()
	both.Spec.Type, both.Spec.ExternalTrafficPolicy, both.Spec.ExternalIPs = corev1.ServiceTypeClusterIP, corev1.ServiceExternalTrafficPolicyLocal, []string{"198.51.100.1"}
	r.tell(both)
	want("the external policy is Local too", 1, 1)
	external := both.DeepCopy()
	external.Spec.InternalTrafficPolicy = nil
	r.tell(external)
	want("only the external policy is Local", 0, 1)
	r.tell(both)

	here, name := elsewhere.DeepCopy(), "node-a"
	here.Endpoints[0].NodeName = &name
	r.tell(here)
	want("it is here now", 0, 0)
	r.tell(elsewhere)
	want("it is elsewhere again", 1, 1)
	plain := service("web", "10.96.1.1", 80, corev1.ProtocolTCP)
	r.tell(plain)
	want("no policy is Local", 0, 0)
}
