package sync

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/apihealth"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/runtime/writer"
	"github.com/firsthop/firsthop/test/lab"
)

// rig is a Loop that writes to a table in memory.
type rig struct {
	t      *testing.T
	f      *lockedFake
	l      *Loop
	events []Event
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, f: &lockedFake{Fake: nat.NewFake(8192)}}
	log := slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil))
	w := writer.New(writer.Config{Store: r.f, Log: log, Lock: func(context.Context) (func() error, error) {
		return func() error { return nil }, nil
	}})
	t.Cleanup(w.Close)
	r.l = New(Config{Log: log, Writer: w, NodeName: "node-a"})
	r.l.Subscribe(func(e Event) { r.events = append(r.events, e) })
	r.l.inputs.hostAddrs, r.l.inputs.apiServers = true, true
	return r
}

// flush does what the Loop does when it is woken.
func (r *rig) flush() {
	r.t.Helper()
	if ready, _ := r.l.ready(); !ready {
		if err := r.l.redirect(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
		return
	}
	for again := true; again; again = r.l.cfg.Writer.Deferred() {
		if err := r.l.flush(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
	}
}

// published are the events of a type so far.
func published[E any](r *rig) (out []E) {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	for _, e := range r.events {
		if e, ok := e.(E); ok {
			out = append(out, e)
		}
	}
	return out
}

func (r *rig) goes(front string, p bpf.Proto) string {
	r.t.Helper()
	s, err := r.f.Read()
	if err != nil {
		r.t.Fatal(err)
	}
	v := s.Lookup(bpf.FrontendKeyOf(netip.MustParseAddrPort(front), p))
	if v.Kind != nat.Translated {
		return string(v.Kind)
	}
	slices.SortFunc(v.Backends, netip.AddrPort.Compare)
	return fmt.Sprint(v.Backends)
}

func (r *rig) want(front, want string) {
	r.t.Helper()
	if got := r.goes(front, bpf.TCP); got != want {
		r.t.Errorf("%s: %s, want %s", front, got, want)
	}
}

func service(name, ip string, port int32, proto corev1.Protocol) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Port: port, Protocol: proto, TargetPort: intstr.FromInt32(port)}},
		},
	}
}

func slice(svc string, port int32, proto corev1.Protocol, addrs ...string) *discoveryv1.EndpointSlice {
	name := ""
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: svc + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: svc}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &proto}},
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

func (r *rig) tell(objects ...metav1.Object) {
	for _, o := range objects {
		ev := watch.Event{Name: types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}, Object: o}
		switch o.(type) {
		case *corev1.Service:
			ev.Resource = watch.Services
		case *discoveryv1.EndpointSlice:
			ev.Resource = watch.EndpointSlices
		case *corev1.Node:
			ev.Resource = watch.Nodes
		}
		r.l.Handle([]watch.Event{ev})
	}
}

func (r *rig) sync(resources ...watch.Resource) {
	for _, res := range resources {
		r.l.Handle([]watch.Event{{Resource: res, Synced: true}})
	}
}

func (r *rig) syncAll() { r.sync(watch.Services, watch.EndpointSlices, watch.Nodes) }

// seed does what the init stage does.
func (r *rig) seed(backends ...string) {
	r.t.Helper()
	s, err := r.f.Read()
	if err != nil {
		r.t.Fatal(err)
	}
	vip := netip.MustParseAddrPort("10.96.0.1:443")
	svc := nat.Service{Name: "api", Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(vip, bpf.TCP)}, VIPs: []netip.Addr{vip.Addr()}, Backends: addrPorts(backends...)}
	p := nat.NewPlanner(s, nat.InitIndexes)
	if err := p.Ensure(svc); err != nil {
		r.t.Fatal(err)
	}
	if _, err := nat.Apply(r.f, p.Plan()); err != nil {
		r.t.Fatal(err)
	}
	r.l.api.addrs = []netip.AddrPort{vip}
}

func nets(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrPorts(ss ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range ss {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func kubernetes(addrs ...string) []metav1.Object {
	return []metav1.Object{service("kubernetes", "10.96.0.1", 443, corev1.ProtocolTCP), slice("kubernetes", 6443, corev1.ProtocolTCP, addrs...)}
}

// What was only not heard of yet must not be taken away (calico#12192).
func TestNothingIsWrittenBeforeAllInputsAreKnown(t *testing.T) {
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

// The API servers may all have moved while nobody was there: what the watches wait for comes by the Service IP.
func TestTheAPIServiceIsLedToLiveServersBeforeAllElse(t *testing.T) {
	r := newRig(t)
	r.seed("192.0.2.10:6443")
	r.l.SetLive(apihealth.Set{V4: addrPorts("192.0.2.77:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.77:6443]")
	writes := r.f.writes()
	r.flush()
	if r.f.writes() != writes {
		t.Errorf("%d writes for nothing", r.f.writes()-writes)
	}
	r.tell(kubernetes("192.0.2.77", "192.0.2.78")...)
	r.syncAll()
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.77:6443]") // the other one is not known to live
}

func TestTheAPIServiceFollowsWhoLives(t *testing.T) {
	r := newRig(t)
	r.tell(kubernetes("192.0.2.10", "192.0.2.11")...)
	r.syncAll()
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.10:6443 192.0.2.11:6443]")
	all := published[APIServers](r)
	if last := all[len(all)-1]; !slices.Equal(last.Endpoints, addrPorts("192.0.2.10:6443", "192.0.2.11:6443")) || !slices.Equal(last.Services, addrPorts("10.96.0.1:443")) {
		t.Errorf("published %v", last)
	}
	r.l.SetLive(apihealth.Set{V4: addrPorts("192.0.2.11:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.tell(slice("kubernetes", 6443, corev1.ProtocolTCP)) // an API that names nobody
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.l.Handle([]watch.Event{{Resource: watch.Services, Name: services.APIService}}) // or has no such Service
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.l.SetLive(apihealth.Set{V4: addrPorts("192.0.2.10:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.10:6443]")
}

// A former runtime, or init, has put a dead API server out, or was told which to use: its choice stays until there is news.
func TestWhatTheAPIServiceLedToStays(t *testing.T) {
	r := newRig(t)
	r.seed("192.0.2.11:6443")
	r.l.Adopt(r.l.api.addrs, addrPorts("192.0.2.11:6443"))
	r.tell(kubernetes("192.0.2.10", "192.0.2.11")...)
	r.syncAll()
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.l.SetLive(apihealth.Set{V4: addrPorts("192.0.2.10:6443", "192.0.2.11:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.10:6443 192.0.2.11:6443]")
}

// A Local policy on the API service must not lead to the dead one of this node.
func TestDeadAPIServersAreOutOfLocalTrafficToo(t *testing.T) {
	r := newRig(t)
	svc, s := service("kubernetes", "10.96.0.1", 443, corev1.ProtocolTCP), slice("kubernetes", 6443, corev1.ProtocolTCP, "192.0.2.10", "192.0.2.11")
	local, node := corev1.ServiceInternalTrafficPolicyLocal, "node-a"
	svc.Spec.InternalTrafficPolicy = &local
	s.Endpoints[0].NodeName = &node
	r.tell(svc, s)
	r.syncAll()
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.10:6443]")
	r.l.SetLive(apihealth.Set{V4: addrPorts("192.0.2.11:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
}

// Before it is known which addresses the host has, node ports would be taken away.
func TestNodePortsWaitForTheHostsAddresses(t *testing.T) {
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
func TestPodsAreToldWhenAllIsKnown(t *testing.T) {
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

func TestNodePortsFollowTheHostsAddresses(t *testing.T) {
	r := newRig(t)
	svc := service("web", "10.96.1.1", 80, corev1.ProtocolTCP)
	svc.Spec.Type, svc.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
	r.tell(svc, slice("web", 80, corev1.ProtocolTCP, "10.0.0.1"))
	r.l.SetHostAddrs(nets("127.0.0.1/8", "192.0.2.1/24"))
	r.syncAll()
	r.flush()
	r.want("192.0.2.1:30080", "[10.0.0.1:80]")
	r.want("127.0.0.1:30080", "[10.0.0.1:80]")
	r.l.SetHostAddrs(nets("127.0.0.1/8", "192.0.2.2/24"))
	r.flush()
	r.want("192.0.2.1:30080", "not a frontend")
	r.want("192.0.2.2:30080", "[10.0.0.1:80]")
}

func TestZonesAreThoseOfTheNode(t *testing.T) {
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

// A UDP client of a backend that is gone would talk to nobody for ever. One that two Services share isn't gone.
func TestGoneUDPBackendsAreToldOnce(t *testing.T) {
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
func TestGoneBackendsAreToldWhenNothingLeadsToThem(t *testing.T) {
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

func TestTCPBackendsAreToldWhereTheyAreAskedFor(t *testing.T) {
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

// A kubeconfig may name the Service IP, and a runtime that has not been told of it may find it alive.
func TestTheAPIServiceNeverLeadsToItself(t *testing.T) {
	r := newRig(t)
	r.seed("192.0.2.10:6443")
	r.l.SetLive(apihealth.Set{V4: addrPorts("10.96.0.1:443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.10:6443]")
	r.tell(kubernetes("192.0.2.11")...)
	r.syncAll()
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.l.SetLive(apihealth.Set{V4: addrPorts("10.96.0.1:443", "192.0.2.12:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.12:6443]")
}

func TestFlushDoneComesAfterAllInputsAreKnown(t *testing.T) {
	r := newRig(t)
	r.flush()
	if done := published[FlushDone](r); len(done) > 0 {
		t.Error("before all inputs are known")
	}
	r.syncAll()
	r.flush()
	if done := published[FlushDone](r); len(done) != 1 || done[0].Err != nil {
		t.Errorf("after a write: %v", done)
	}
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
