package sync

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/runtime/writer"
)

// lockedFake lets a Loop, what its writer retires, and a test meet.
type lockedFake struct {
	*nat.Fake
	mu     sync.Mutex
	before atomic.Pointer[func()] // is called before each write of backends
	grace  atomic.Pointer[func()] // is called in each grace period
}

func locked[T any](f *lockedFake, do func() T) T {
	f.mu.Lock()
	defer f.mu.Unlock()
	return do()
}

func (f *lockedFake) writes() int { return locked(f, func() int { return f.Writes }) }

func (f *lockedFake) Read() (*nat.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Fake.Read()
}

func (f *lockedFake) Generation() (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Fake.Generation()
}

func (f *lockedFake) PutGeneration(g uint64) error {
	return locked(f, func() error { return f.Fake.PutGeneration(g) })
}

func (f *lockedFake) PutBackends(k []bpf.BackendKey, v []bpf.Backend) error {
	if before := f.before.Load(); before != nil {
		(*before)()
	}
	return locked(f, func() error { return f.Fake.PutBackends(k, v) })
}

func (f *lockedFake) DeleteBackends(k []bpf.BackendKey) error {
	return locked(f, func() error { return f.Fake.DeleteBackends(k) })
}

func (f *lockedFake) PutFrontends(k []bpf.FrontendKey, v []bpf.Frontend) error {
	return locked(f, func() error { return f.Fake.PutFrontends(k, v) })
}

func (f *lockedFake) ChangeFrontends(k []bpf.FrontendKey, v []bpf.Frontend) error {
	return locked(f, func() error { return f.Fake.ChangeFrontends(k, v) })
}

func (f *lockedFake) DeleteFrontends(k []bpf.FrontendKey) error {
	return locked(f, func() error { return f.Fake.DeleteFrontends(k) })
}

func (f *lockedFake) PutSourceRanges(k []bpf.SourceRangeKey) error {
	return locked(f, func() error { return f.Fake.PutSourceRanges(k) })
}

func (f *lockedFake) DeleteSourceRanges(k []bpf.SourceRangeKey) error {
	return locked(f, func() error { return f.Fake.DeleteSourceRanges(k) })
}

func (f *lockedFake) PutServiceStates(at []uint32, w []bpf.ServiceState) error {
	return locked(f, func() error { return f.Fake.PutServiceStates(at, w) })
}

func (f *lockedFake) Synchronize() error {
	if grace := f.grace.Load(); grace != nil {
		(*grace)()
	}
	return locked(f, f.Fake.Synchronize)
}

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
	r.l.inputs.hostAddrs, r.l.inputs.apiServers, r.l.node.others.known = true, true, true
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

// hostAddrs are "192.0.2.1/24", or "192.0.2.1/24 eth1".
func hostAddrs(ss ...string) []watch.HostAddr {
	var out []watch.HostAddr
	for _, s := range ss {
		addr, device, _ := strings.Cut(s, " ")
		out = append(out, watch.HostAddr{Prefix: netip.MustParsePrefix(addr), Device: cmp.Or(device, "eth0")})
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
