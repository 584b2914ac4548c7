package sync

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/watch"
)

// A UDP client of a backend that is gone would talk to nobody for ever. One that two Services share isn't gone.
func TestBackendsGoneOnce(t *testing.T) {
	r := newRig(t)
	r.tell(
		service("dns", "10.96.1.1", 53, corev1.ProtocolUDP), slice("dns", 53, corev1.ProtocolUDP, "10.0.0.1", "10.0.0.2"),
		service("dns2", "10.96.1.2", 53, corev1.ProtocolUDP), slice("dns2", 53, corev1.ProtocolUDP, "10.0.0.1"),
		service("web", "10.96.1.3", 80, corev1.ProtocolTCP), slice("web", 80, corev1.ProtocolTCP, "10.0.0.3"),
	)
	r.syncAll()
	r.flush()
	r.tell(slice("dns", 53, corev1.ProtocolUDP), slice("web", 80, corev1.ProtocolTCP))
	r.flush()
	r.tell(slice("dns2", 53, corev1.ProtocolUDP))
	r.flush()
	r.tell(slice("dns2", 53, corev1.ProtocolUDP, "10.0.0.9"))
	r.tell(slice("dns2", 53, corev1.ProtocolUDP))
	r.tell(slice("dns2", 53, corev1.ProtocolUDP, "10.0.0.9")) // gone and back before anything was written
	r.flush()
	want := []BackendsGone{{{Addr: netip.MustParseAddrPort("10.0.0.2:53"), Proto: bpf.UDP}}, {{Addr: netip.MustParseAddrPort("10.0.0.1:53"), Proto: bpf.UDP}}}
	if got := published[BackendsGone](r); !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("told %v, want %v", got, want)
	}
}

// While a write is held, clients may still be led to what is going: who ends their sockets then has it to do again.
func TestBackendsGoneWhenNothingLeadsToThem(t *testing.T) {
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
	if len(published[BackendsGone](r)) != 1 || r.goes("10.96.1.4:53", bpf.UDP) != "not a frontend" || done() > done0 || r.l.liveness.Waiting().IsZero() {
		t.Errorf("told %v, d goes to %s, %d flushes are said to be done, waiting since %v: want b's and d's changes held",
			published[BackendsGone](r), r.goes("10.96.1.4:53", bpf.UDP), done()-done0, r.l.liveness.Waiting())
	}
	close(release)
	r.flush()
	var told []string
	for _, b := range slices.Concat(published[BackendsGone](r)...) {
		told = append(told, b.Addr.String())
	}
	slices.Sort(told)
	if want := []string{"10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53"}; !slices.Equal(told, want) || r.goes("10.96.1.4:53", bpf.UDP) != "[10.0.0.4:53]" {
		t.Errorf("told %v, want %v; d goes to %s", told, want, r.goes("10.96.1.4:53", bpf.UDP))
	}
	if began() < began0+2 || done() != done0+1 {
		t.Errorf("%d flushes began, %d are done: want several, done together", began()-began0, done()-done0)
	}
}

func TestBackendsGoneOverTCP(t *testing.T) {
	r := newRig(t)
	r.l.cfg.EndTCP = true
	r.tell(service("web", "10.96.1.3", 80, corev1.ProtocolTCP), slice("web", 80, corev1.ProtocolTCP, "10.0.0.3"))
	r.syncAll()
	r.flush()
	r.tell(slice("web", 80, corev1.ProtocolTCP))
	r.flush()
	want := BackendsGone{{Addr: netip.MustParseAddrPort("10.0.0.3:80"), Proto: bpf.TCP}}
	if got := published[BackendsGone](r); len(got) != 1 || !slices.Equal(got[0], want) {
		t.Errorf("told %v, want %v", got, want)
	}
}
