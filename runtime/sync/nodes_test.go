package sync

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	goruntime "runtime"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/apihealth"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/runtime/writer"
)

func nodeOf(name string, internal ...string) watch.Event {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, a := range internal {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return watch.Event{Resource: watch.OtherNodes, Name: types.NamespacedName{Name: name}, Object: n}
}

// newNodeRig is a rig of a cluster with a node port, 30080, before anything is known of its nodes.
func newNodeRig(t *testing.T) *rig {
	r := newRig(t)
	r.l.node.others.known = false
	svc := service("web", "10.96.1.1", 80, corev1.ProtocolTCP)
	svc.Spec.Type, svc.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
	r.tell(svc, slice("web", 80, corev1.ProtocolTCP, "10.0.0.1"))
	r.l.SetHostAddrs(hostAddrs("127.0.0.1/8 lo", "192.0.2.1/24"))
	return r
}

func TestLoopServesNodePortsAtOtherNodes(t *testing.T) {
	r := newNodeRig(t)
	r.l.Handle([]watch.Event{nodeOf("node-a", "192.0.2.1"), nodeOf("node-b", "192.0.2.2")})
	r.syncAll()
	if ready, left := r.l.ready(); ready || left <= 0 || left > nodeGrace {
		t.Errorf("before all nodes are known: ready %v, in %v", ready, left)
	}
	r.sync(watch.OtherNodes)
	r.flush()
	r.want("192.0.2.1:30080", "[10.0.0.1:80]")
	r.want("192.0.2.2:30080", "[10.0.0.1:80]")
	r.want("192.0.2.3:30080", "not a frontend")
	if n := r.l.cfg.Writer.Status().Nodes; n != 1 {
		t.Errorf("%d addresses are marked: the host's own has frontends", n)
	}

	var addrs []string
	for _, e := range published[NodeAddrs](r) {
		addrs = append(addrs, fmt.Sprint(e.Node, e.Addrs))
	}
	if want := "[node-a[192.0.2.1] node-b[192.0.2.2]]"; fmt.Sprint(addrs) != want {
		t.Errorf("told %v, want %s", addrs, want)
	}

	writes, queued, seen := r.f.writes(), len(published[Queued](r)), len(published[Observed](r))
	for range 3 {
		r.l.Handle([]watch.Event{nodeOf("node-a", "192.0.2.1"), nodeOf("node-b", "192.0.2.2")})
		r.flush()
	}
	if w, q, o := r.f.writes()-writes, len(published[Queued](r))-queued, len(published[Observed](r))-seen; w+q+o != 0 {
		t.Errorf("heartbeats: %d writes, %d times something was queued, %d events", w, q, o)
	}

	r.l.Handle([]watch.Event{nodeOf("node-b", "192.0.2.3"), nodeOf("node-c", "192.0.2.4")})
	r.flush()
	r.want("192.0.2.2:30080", "not a frontend")
	r.want("192.0.2.3:30080", "[10.0.0.1:80]")
	r.want("192.0.2.4:30080", "[10.0.0.1:80]")
	r.l.Handle([]watch.Event{{Resource: watch.OtherNodes, Name: types.NamespacedName{Name: "node-c"}}})
	r.flush()
	r.want("192.0.2.4:30080", "not a frontend")
}

// An address that moves from this host to another node, and back, is served all the time.
func TestLoopServesNodePortsAtAddressesThatMove(t *testing.T) {
	r := newNodeRig(t)
	r.l.Handle([]watch.Event{nodeOf("node-b", "192.0.2.2", "192.0.2.100")})
	r.syncAll()
	r.sync(watch.OtherNodes)
	r.flush()
	key := bpf.FrontendKeyOf(netip.MustParseAddrPort("192.0.2.100:30080"), bpf.TCP)
	r.f.Observe = func(s *nat.State) {
		if backends, refused := s.Resolve(key); refused || len(backends) != 1 {
			t.Errorf("in between it goes to %v (refused %v)", backends, refused)
		}
	}
	for _, mine := range []bool{true, false, true} {
		addrs := []string{"127.0.0.1/8 lo", "192.0.2.1/24"}
		if mine {
			addrs = append(addrs, "192.0.2.100/24")
		}
		r.l.SetHostAddrs(hostAddrs(addrs...))
		r.flush()
		if n := r.l.cfg.Writer.Status().Nodes; mine && n != 1 || !mine && n != 2 {
			t.Errorf("the host's: %v; %d addresses are marked", mine, n)
		}
	}
	r.f.Observe = nil
}

func TestLoopWithoutTheListOfNodes(t *testing.T) {
	r := newNodeRig(t)
	r.syncAll()
	r.l.Handle([]watch.Event{{Resource: watch.OtherNodes, Absent: true}})
	if ready, _ := r.l.ready(); !ready {
		t.Error("nodes that may not be listed hold everything up")
	}
	r.flush()
	r.want("192.0.2.1:30080", "[10.0.0.1:80]")
	state, err := r.f.Read()
	if err != nil {
		t.Fatal(err)
	}
	for k := range state.Frontends {
		if k.Nodes != 0 {
			t.Errorf("%v is in the table", k)
		}
	}
	r.l.Handle([]watch.Event{nodeOf("node-b", "192.0.2.2"), {Resource: watch.OtherNodes, Synced: true}}) // allowed now
	r.flush()
	r.want("192.0.2.2:30080", "[10.0.0.1:80]")
	r.l.Handle([]watch.Event{{Resource: watch.OtherNodes, Absent: true}}) // and forbidden again
	r.flush()
	r.want("192.0.2.2:30080", "not a frontend")
	r.want("192.0.2.1:30080", "[10.0.0.1:80]")
	told := published[NodeAddrs](r)
	if last := told[len(told)-1]; last.Node != "node-b" || last.Addrs != nil {
		t.Errorf("told last %+v, want that node-b is gone", last)
	}
}

// What a former runtime knew of the nodes stays until all of them are known.
func TestLoopKeepsNodesUntilTheyAreKnown(t *testing.T) {
	r := newNodeRig(t)
	r.l.Handle([]watch.Event{nodeOf("node-b", "192.0.2.2"), nodeOf("node-c", "192.0.2.3")})
	r.syncAll()
	r.sync(watch.OtherNodes)
	r.flush()

	again := newNodeRig(t)
	again.f.Fake = r.f.Fake
	again.syncAll()
	again.l.inputs.synced[watch.EndpointSlices] = time.Now().Add(-nodeGrace)
	again.l.inputs.synced[watch.Services] = time.Now().Add(-nodeGrace)
	again.l.Handle([]watch.Event{nodeOf("node-b", "192.0.2.2")})
	again.flush()
	again.want("192.0.2.2:30080", "[10.0.0.1:80]")
	again.want("192.0.2.3:30080", "[10.0.0.1:80]")
	again.sync(watch.OtherNodes)
	again.flush()
	again.want("192.0.2.2:30080", "[10.0.0.1:80]")
	again.want("192.0.2.3:30080", "not a frontend")
}

func TestLoopNeverTakesAnAPIServerAtANode(t *testing.T) {
	r := newNodeRig(t)
	r.l.SetAPIServers(apihealth.Addresses{Reserved: addrPorts("192.0.2.2:30080")})
	r.l.Handle([]watch.Event{nodeOf("node-b", "192.0.2.2"), nodeOf("node-c", "192.0.2.3")})
	r.syncAll()
	r.sync(watch.OtherNodes)
	r.flush()
	r.want("192.0.2.2:30080", "not a frontend")
	r.want("192.0.2.1:30080", "[10.0.0.1:80]")
	if problems := r.l.Problems(); len(problems) != 1 || problems[0].Reason != services.AddressReserved {
		t.Errorf("problems %v", problems)
	}
}

func TestLoopLeavesClusterIPsOfInterfaces(t *testing.T) {
	r := newRig(t)
	r.l.serviceRange = newServiceRange([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")})
	r.tell(kubernetes("192.0.2.10")...)
	r.tell(service("dns", "10.96.0.10", 53, corev1.ProtocolTCP), slice("dns", 53, corev1.ProtocolTCP, "10.0.0.1"))
	r.l.SetHostAddrs(hostAddrs("127.0.0.1/8 lo", "192.0.2.1/24", "10.96.0.10/32 nodelocaldns", "169.254.20.10/32 nodelocaldns"))
	r.syncAll()
	r.flush()
	r.flush() // the Service range
	r.want("10.96.0.10:53", "not a frontend")
	r.want("10.96.0.10:8080", "not a frontend")
	r.want("10.96.0.11:53", "refused")
	if problems := r.l.Problems(); len(problems) != 1 || problems[0].Reason != services.LeftToHost {
		t.Errorf("problems %v", problems)
	}
	r.l.SetHostAddrs(hostAddrs("127.0.0.1/8 lo", "192.0.2.1/24"))
	r.flush()
	r.flush()
	r.want("10.96.0.10:53", "[10.0.0.1:53]")
	r.want("10.96.0.10:8080", "refused")

	// A device that has the API service's address, too, is a Service proxy's.
	r.l.SetHostAddrs(hostAddrs("127.0.0.1/8 lo", "192.0.2.1/24", "10.96.0.1/32 dummy0", "10.96.0.10/32 dummy0"))
	r.flush()
	r.want("10.96.0.10:53", "[10.0.0.1:53]")
	r.want("10.96.0.1:443", "[192.0.2.10:6443]")
	if problems := r.l.Problems(); len(problems) != 0 {
		t.Errorf("problems %v", problems)
	}
}

// BenchmarkLoopHeartbeats takes status updates of 5,000 nodes.
func BenchmarkLoopHeartbeats(b *testing.B) {
	l := New(Config{Log: slog.New(slog.DiscardHandler), NodeName: "node-0"})
	events := make([]watch.Event, 5000)
	for i := range events {
		events[i] = nodeOf(fmt.Sprint("node-", i), fmt.Sprintf("10.%d.%d.1", i/250, i%250))
		l.observeOther(&events[i])
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		l.Handle(events[i%len(events) : i%len(events)+1])
	}
}

// BenchmarkLoopManyNodes brings 5,000 nodes to 2,000 node ports: what they take in the table and in memory, and how long
// it takes until one more is written.
func BenchmarkLoopManyNodes(b *testing.B) {
	heap := func() uint64 {
		var m goruntime.MemStats
		goruntime.GC()
		goruntime.GC()
		goruntime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	frontends := func(f *lockedFake) int {
		s, err := f.Read()
		if err != nil {
			b.Fatal(err)
		}
		return len(s.Frontends)
	}
	for range b.N {
		f := &lockedFake{Fake: nat.NewFake(8192)}
		log := slog.New(slog.DiscardHandler)
		w := writer.New(writer.Config{Store: f, Log: log, Lock: func(context.Context) (func() error, error) { return func() error { return nil }, nil }})
		l := New(Config{Log: log, Writer: w, NodeName: "node-0"})
		l.inputs.apiServers = true
		l.SetHostAddrs(hostAddrs("127.0.0.1/8 lo", "192.0.2.1/24"))
		var events []watch.Event
		for i := range 2000 {
			svc := service(fmt.Sprint("s", i), fmt.Sprintf("10.96.%d.%d", i/250, i%250+1), 80, corev1.ProtocolTCP)
			svc.Spec.Type, svc.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, int32(30000+i)
			sl := slice(svc.Name, 80, corev1.ProtocolTCP, "10.0.0.1", "10.0.0.2")
			events = append(events, watch.Event{Resource: watch.Services, Name: types.NamespacedName{Namespace: "default", Name: svc.Name}, Object: svc},
				watch.Event{Resource: watch.EndpointSlices, Name: types.NamespacedName{Namespace: "default", Name: sl.Name}, Object: sl})
		}
		l.Handle(events)
		for _, r := range []watch.Resource{watch.Services, watch.EndpointSlices, watch.Nodes, watch.OtherNodes} {
			l.Handle([]watch.Event{{Resource: r, Synced: true}})
		}
		flush := func() {
			for again := true; again; again = w.Deferred() {
				if err := l.flush(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		}
		flush()
		before, had := heap(), frontends(f)
		events = nil
		for i := range 5000 {
			events = append(events, nodeOf(fmt.Sprint("node-", i), fmt.Sprintf("10.%d.%d.1", 128+i/250, i%250)))
		}
		start := time.Now()
		l.Handle(events)
		events = nil
		flush()
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms/5000nodes")
		b.ReportMetric(float64(frontends(f)-had), "entries")
		b.ReportMetric(float64(heap()-before)/5000, "B/node") // of the loop, and of the table in memory
		start = time.Now()
		l.Handle([]watch.Event{nodeOf("node-new", "10.200.0.1")})
		flush()
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms/node")
		goruntime.KeepAlive(l)
		w.Close()
	}
}
