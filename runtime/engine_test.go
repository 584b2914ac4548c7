package runtime

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
)

// rig is an engine that writes to a table in memory.
type rig struct {
	t    *testing.T
	f    *lockedFake
	e    *engine
	gone [][]Backend
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, f: &lockedFake{Fake: nat.NewFake(8192)}}
	log := slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil))
	w := writer.New(writer.Config{Store: r.f, Log: log, Lock: func(context.Context) (func() error, error) {
		return func() error { return nil }, nil
	}})
	t.Cleanup(w.Close)
	r.e = newEngine(log, w, "node-a", services.NodePortAddresses{})
	r.e.gone = func(b []Backend) { r.gone = append(r.gone, b) }
	r.e.hostKnown, r.e.serversKnown = true, true
	return r
}

// flush does what the engine's loop does when it is woken.
func (r *rig) flush() {
	r.t.Helper()
	if ready, _ := r.e.ready(); !ready {
		if err := r.e.redirect(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
		return
	}
	for again := true; again; again = r.e.writer.Held() {
		if err := r.e.flush(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
	}
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
		r.e.handle([]watch.Event{ev})
	}
}

func (r *rig) sync(resources ...watch.Resource) {
	for _, res := range resources {
		r.e.handle([]watch.Event{{Resource: res, Synced: true}})
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
	r.e.vips = []netip.AddrPort{vip}
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
	if ready, left := r.e.ready(); ready || left <= 0 || left > nodeGrace {
		t.Errorf("without the Node: ready %v, in %v", ready, left)
	}
	r.e.synced[watch.EndpointSlices] = time.Now().Add(-nodeGrace)
	r.e.synced[watch.Services] = time.Now().Add(-nodeGrace)
	if ready, _ := r.e.ready(); !ready {
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
	r.e.setLive(apihealth.Set{V4: addrPorts("192.0.2.77:6443")})
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
	var named, vips []netip.AddrPort
	r.e.apiEndpoints = func(e, v []netip.AddrPort) { named, vips = e, v }
	r.tell(kubernetes("192.0.2.10", "192.0.2.11")...)
	r.syncAll()
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.10:6443 192.0.2.11:6443]")
	if !slices.Equal(named, addrPorts("192.0.2.10:6443", "192.0.2.11:6443")) || !slices.Equal(vips, addrPorts("10.96.0.1:443")) {
		t.Errorf("the monitor was told %v and %v", named, vips)
	}
	r.e.setLive(apihealth.Set{V4: addrPorts("192.0.2.11:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.tell(slice("kubernetes", 6443, corev1.ProtocolTCP)) // an API that names nobody
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.e.handle([]watch.Event{{Resource: watch.Services, Name: services.APIService}}) // or has no such Service
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.e.setLive(apihealth.Set{V4: addrPorts("192.0.2.10:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.10:6443]")
}

// A former runtime, or init, has put a dead API server out, or was told which to use: its choice stays until there is news.
func TestWhatTheAPIServiceLedToStays(t *testing.T) {
	r := newRig(t)
	r.seed("192.0.2.11:6443")
	r.e.adopt(addrPorts("192.0.2.11:6443"))
	r.tell(kubernetes("192.0.2.10", "192.0.2.11")...)
	r.syncAll()
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.e.setLive(apihealth.Set{V4: addrPorts("192.0.2.10:6443", "192.0.2.11:6443")})
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
	r.e.setLive(apihealth.Set{V4: addrPorts("192.0.2.11:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
}

// Before it is known which addresses the host has, node ports would be taken away.
func TestNodePortsWaitForTheHostsAddresses(t *testing.T) {
	r := newRig(t)
	r.e.hostKnown = false
	r.tell(service("web", "10.96.1.1", 80, corev1.ProtocolTCP), slice("web", 80, corev1.ProtocolTCP, "10.0.0.1"))
	r.syncAll()
	r.flush()
	r.want("10.96.1.1:80", "not a frontend")
	r.e.setHostAddrs(nil)
	r.flush()
	r.want("10.96.1.1:80", "[10.0.0.1:80]")
}

// What a former runtime told the programs of pods stays until all is known that decides it.
func TestPodsAreToldWhenAllIsKnown(t *testing.T) {
	for _, withPods := range []bool{true, false} {
		r := newRig(t)
		r.e.withPods = withPods
		told := 0
		r.e.podsSynced = func() { told++ }
		r.sync(watch.Pods)
		r.e.knowFallback()
		if told != 0 {
			t.Errorf("pods %v: told before the Services are known", withPods)
		}
		r.sync(watch.Services)
		r.sync(watch.Services, watch.Pods)
		r.e.knowFallback()
		if told != 1 {
			t.Errorf("pods %v: told %d times", withPods, told)
		}
	}
}

func TestNodePortsFollowTheHostsAddresses(t *testing.T) {
	r := newRig(t)
	svc := service("web", "10.96.1.1", 80, corev1.ProtocolTCP)
	svc.Spec.Type, svc.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
	r.tell(svc, slice("web", 80, corev1.ProtocolTCP, "10.0.0.1"))
	r.e.setHostAddrs(nets("127.0.0.1/8", "192.0.2.1/24"))
	r.syncAll()
	r.flush()
	r.want("192.0.2.1:30080", "[10.0.0.1:80]")
	r.want("127.0.0.1:30080", "[10.0.0.1:80]")
	r.e.setHostAddrs(nets("127.0.0.1/8", "192.0.2.2/24"))
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
	want := [][]Backend{{{netip.MustParseAddrPort("10.0.0.2:53"), bpf.UDP}}, {{netip.MustParseAddrPort("10.0.0.1:53"), bpf.UDP}}}
	if !slices.EqualFunc(r.gone, want, slices.Equal) {
		t.Errorf("told %v, want %v", r.gone, want)
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
		r.e.handle([]watch.Event{{Resource: watch.Services, Name: types.NamespacedName{Namespace: "default", Name: name}}})
	}
	goes("a")
	r.flush()
	var began, done int
	r.e.watched = countFlushes{began: &began, done: &done}
	goes("b")
	r.tell(service("d", "10.96.1.4", 53, corev1.ProtocolUDP), slice("d", 53, corev1.ProtocolUDP, "10.0.0.4"))
	r.tell(slice("c", 53, corev1.ProtocolUDP, "10.0.0.9"))
	if err := r.e.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.goes("10.96.1.3:53", bpf.UDP); got != "[10.0.0.9:53]" {
		t.Errorf("the endpoints of c wait for the Services that come: %s", got)
	}
	if len(r.gone) != 1 || r.goes("10.96.1.4:53", bpf.UDP) != "not a frontend" || done > 0 || r.e.pulse.waiting().IsZero() {
		t.Errorf("told %v, d goes to %s, %d flushes are said to be done, waiting since %v: want b's and d's changes held",
			r.gone, r.goes("10.96.1.4:53", bpf.UDP), done, r.e.pulse.waiting())
	}
	close(release)
	r.flush()
	var told []string
	for _, b := range slices.Concat(r.gone...) {
		told = append(told, b.Addr.String())
	}
	slices.Sort(told)
	if want := []string{"10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53"}; !slices.Equal(told, want) || r.goes("10.96.1.4:53", bpf.UDP) != "[10.0.0.4:53]" {
		t.Errorf("told %v, want %v; d goes to %s", told, want, r.goes("10.96.1.4:53", bpf.UDP))
	}
	if done != began || began < 2 {
		t.Errorf("%d flushes, %d done", began, done)
	}
}

// countFlushes counts flushes that begin and that are done.
type countFlushes struct {
	nobody
	began, done *int
}

func (c countFlushes) flush(time.Time) func(error) {
	*c.began++
	return func(error) { *c.done++ }
}

func TestTCPBackendsAreToldWhereTheyAreAskedFor(t *testing.T) {
	r := newRig(t)
	r.e.endTCP = true
	r.tell(service("web", "10.96.1.3", 80, corev1.ProtocolTCP), slice("web", 80, corev1.ProtocolTCP, "10.0.0.3"))
	r.syncAll()
	r.flush()
	r.tell(slice("web", 80, corev1.ProtocolTCP))
	r.flush()
	want := []Backend{{netip.MustParseAddrPort("10.0.0.3:80"), bpf.TCP}}
	if len(r.gone) != 1 || !slices.Equal(r.gone[0], want) {
		t.Errorf("told %v, want %v", r.gone, want)
	}
}

// The loop itself: woken, it writes; what waits is seen from outside.
func TestTheEngineWritesWhenItIsTold(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.e.run(ctx); close(done) }()
	r.tell(kubernetes("192.0.2.10")...)
	if r.e.pulse.waiting().IsZero() {
		t.Error("nothing waits, though nothing can have been written")
	}
	r.syncAll()
	deadline := time.Now().Add(30 * time.Second)
	for !r.e.pulse.waiting().IsZero() {
		if time.Now().After(deadline) {
			t.Fatal("nothing was written")
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	r.want("10.96.0.1:443", "[192.0.2.10:6443]")
}

// A kubeconfig may name the Service IP, and a runtime that has not been told of it may find it alive.
func TestTheAPIServiceNeverLeadsToItself(t *testing.T) {
	r := newRig(t)
	r.seed("192.0.2.10:6443")
	r.e.setLive(apihealth.Set{V4: addrPorts("10.96.0.1:443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.10:6443]")
	r.tell(kubernetes("192.0.2.11")...)
	r.syncAll()
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
	r.e.setLive(apihealth.Set{V4: addrPorts("10.96.0.1:443", "192.0.2.12:6443")})
	r.flush()
	r.want("10.96.0.1:443", "[192.0.2.12:6443]")
}

func TestTheFirstWriteIsTold(t *testing.T) {
	r := newRig(t)
	written := 0
	r.e.written = func() { written++ }
	r.flush()
	if written != 0 {
		t.Error("told before all inputs are known")
	}
	r.syncAll()
	r.flush()
	if written != 1 {
		t.Errorf("told %d times after a write", written)
	}
}
