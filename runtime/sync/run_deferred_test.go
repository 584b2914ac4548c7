package sync

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/watch"
)

// While a write is held, clients may still be led to what is going: who moves or ends their sockets then has it to do again.
func TestFlushDoneWhenNothingLeadsToWhatWent(t *testing.T) {
	r := newRig(t)
	for i, name := range []string{"a", "b", "c"} {
		r.tell(service(name, fmt.Sprintf("10.96.1.%d", i+1), 53, corev1.ProtocolUDP), slice(name, 53, corev1.ProtocolUDP, fmt.Sprintf("10.0.0.%d", i+1)))
	}
	r.syncAll()
	r.flush()
	release := make(chan struct{})
	hold := func() { <-release }
	r.f.grace.Store(&hold)
	goes := func(name string) {
		r.l.Handle([]watch.Event{{Resource: watch.Services, Name: types.NamespacedName{Namespace: "default", Name: name}}})
	}
	goes("a")
	r.flush()
	began, done := func() int { return len(published[FlushBegun](r)) }, func() int { return len(published[FlushDone](r)) }
	began0, done0 := began(), done()
	goes("b")
	r.tell(service("d", "10.96.1.4", 53, corev1.ProtocolUDP), slice("d", 53, corev1.ProtocolUDP, "10.0.0.4"))
	r.tell(slice("c", 53, corev1.ProtocolUDP, "10.0.0.9"))
	if err := r.l.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.goes("10.96.1.3:53", bpf.UDP); got != "[10.0.0.9:53]" {
		t.Errorf("the endpoints of c wait for the Services that come: %s", got)
	}
	if r.goes("10.96.1.4:53", bpf.UDP) != "not a frontend" || done() > done0 || r.l.liveness.Waiting().IsZero() {
		t.Errorf("d goes to %s, %d flushes are said to be done, waiting since %v: want b's and d's changes held",
			r.goes("10.96.1.4:53", bpf.UDP), done()-done0, r.l.liveness.Waiting())
	}
	close(release)
	r.flush()
	if r.goes("10.96.1.4:53", bpf.UDP) != "[10.0.0.4:53]" || r.goes("10.96.1.2:53", bpf.UDP) != "not a frontend" {
		t.Errorf("d goes to %s, b to %s", r.goes("10.96.1.4:53", bpf.UDP), r.goes("10.96.1.2:53", bpf.UDP))
	}
	if began() < began0+2 || done() != done0+1 {
		t.Errorf("%d flushes began, %d are done: want several, done together", began()-began0, done()-done0)
	}
}
