package sync

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/runtime/watch"
)

// What was only not heard of yet must not be taken away (calico#12192).
func TestReadyWhenAllInputsAreKnown(t *testing.T) {
	r := newRig(t)
	r.seed("192.0.2.10:6443")
	r.tell(kubernetes("192.0.2.10", "192.0.2.11")...)
	r.tell(service("web", "10.96.1.1", 80, corev1.ProtocolTCP), slice("web", 80, corev1.ProtocolTCP, "10.0.0.1"))
	writes := r.f.writes()
	for _, res := range []watch.Resource{watch.Services, watch.EndpointSlices} {
		r.flush()
		if r.f.writes() != writes {
			t.Errorf("before %s were known: %d writes", res, r.f.writes()-writes)
		}
		r.sync(res)
	}
	if ready, left := r.l.ready(); ready || left <= 0 || left > nodeGrace {
		t.Errorf("without the Node: ready %v, in %v", ready, left)
	}
	r.l.inputs.synced[watch.EndpointSlices] = time.Now().Add(-nodeGrace)
	r.l.inputs.synced[watch.Services] = time.Now().Add(-nodeGrace)
	if ready, _ := r.l.ready(); !ready {
		t.Error("a Node that can't be read holds everything up")
	}
	r.flush()
	r.want("10.96.1.1:80", "[10.0.0.1:80]")
	r.want("10.96.0.1:443", "[192.0.2.10:6443 192.0.2.11:6443]")
}

// Before it is known which addresses the host has, node ports would be taken away.
func TestReadyWaitsForHostAddrs(t *testing.T) {
	r := newRig(t)
	r.l.inputs.hostAddrs = false
	r.tell(service("web", "10.96.1.1", 80, corev1.ProtocolTCP), slice("web", 80, corev1.ProtocolTCP, "10.0.0.1"))
	r.syncAll()
	r.flush()
	r.want("10.96.1.1:80", "not a frontend")
	r.l.SetHostAddrs(nil)
	r.flush()
	r.want("10.96.1.1:80", "[10.0.0.1:80]")
}

// What a former runtime told the programs of pods stays until all is known that decides it.
func TestPodsReadyWhenAllIsKnown(t *testing.T) {
	for _, withPods := range []bool{true, false} {
		r := newRig(t)
		r.l.cfg.Pods = withPods
		told := func() int { return len(published[PodsReady](r)) }
		r.sync(watch.Pods)
		r.l.FallbackKnown()
		if told() != 0 {
			t.Errorf("pods %v: told before the Services are known", withPods)
		}
		r.sync(watch.Services)
		r.sync(watch.Services, watch.Pods)
		r.l.FallbackKnown()
		if told() != 1 {
			t.Errorf("pods %v: told %d times", withPods, told())
		}
	}
}
