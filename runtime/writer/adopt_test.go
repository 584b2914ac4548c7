package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/services"
)

// storm is a few Services that change in every way, and the table that their writers make one after another.
type storm struct {
	t    *testing.T
	r    *rand.Rand
	f    *lockedFake
	svcs []*corev1.Service
	sls  []*discoveryv1.EndpointSlice
}

var stormNode = services.Node{Name: "here", NodePortAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("127.0.0.1")}}

func newStorm(t *testing.T, seed uint64) *storm {
	s := &storm{t: t, r: rand.New(rand.NewPCG(seed, 1)), f: &lockedFake{Fake: nat.NewFake(2048)}}
	for i := range 5 {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("s", i)}}
		svc.Spec.Type, svc.Spec.ClusterIP = corev1.ServiceTypeClusterIP, fmt.Sprint("10.96.0.", i+1)
		svc.Spec.Ports = []corev1.ServicePort{{Name: "main", Port: 80, Protocol: corev1.ProtocolTCP}}
		s.svcs = append(s.svcs, svc)
		s.sls = append(s.sls, nil)
		s.endpoints(i)
	}
	return s
}

func (s *storm) endpoints(i int) {
	svc := s.svcs[i]
	sl := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4,
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: svc.Name, Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name}}}
	for _, p := range svc.Spec.Ports {
		sl.Ports = append(sl.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: new(8000 + p.Port), Protocol: &p.Protocol})
	}
	for n := range 4 {
		if s.r.IntN(3) > 0 {
			node := []string{"here", "there"}[s.r.IntN(2)]
			sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.0.%d.%d", i, n+1)}, NodeName: &node})
		}
	}
	s.sls[i] = sl
}

func (s *storm) change() {
	i := s.r.IntN(len(s.svcs))
	svc := s.svcs[i].DeepCopy()
	s.svcs[i] = svc
	local := corev1.ServiceInternalTrafficPolicyLocal
	switch s.r.IntN(9) {
	case 0, 1, 2:
		s.endpoints(i)
	case 3:
		if svc.Spec.InternalTrafficPolicy = nil; s.r.IntN(2) == 0 {
			svc.Spec.InternalTrafficPolicy = &local
		}
	case 4:
		svc.Spec.ExternalTrafficPolicy = []corev1.ServiceExternalTrafficPolicy{"Local", "Cluster"}[s.r.IntN(2)]
	case 5:
		taken := map[int32]bool{}
		for _, o := range s.svcs {
			for _, p := range o.Spec.Ports {
				taken[p.NodePort] = true
			}
		}
		svc.Spec.Type = corev1.ServiceTypeClusterIP
		on := s.r.IntN(2) == 0
		for n := range svc.Spec.Ports {
			p := &svc.Spec.Ports[n]
			p.NodePort = 0
			if port := int32(30000 + s.r.IntN(4)); on && !taken[port] { // few: they are used again
				taken[port] = true
				p.NodePort, svc.Spec.Type = port, corev1.ServiceTypeNodePort
			}
		}
	case 6:
		svc.Spec.Ports[0].Name = fmt.Sprint("main-", s.r.IntN(3))
		s.endpoints(i)
	case 7:
		if len(svc.Spec.Ports) == 1 {
			svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "more", Port: 81, Protocol: corev1.ProtocolTCP})
		} else {
			svc.Spec.Ports = svc.Spec.Ports[:1]
		}
		s.endpoints(i)
	case 8:
		svc.Spec.SessionAffinity = []corev1.ServiceAffinity{corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone}[s.r.IntN(2)]
	}
}

// wanted are all ports.
func (s *storm) wanted() map[types.NamespacedName][]services.Port {
	out := map[types.NamespacedName][]services.Port{}
	for i, svc := range s.svcs {
		ports, _ := services.Ports(svc, []*discoveryv1.EndpointSlice{s.sls[i]}, stormNode)
		out[types.NamespacedName{Namespace: "ns", Name: svc.Name}] = ports
	}
	return out
}

// way is where a frontend leads to, and whether to local backends only. One that changes between that and all may for
// a moment be followed by the former policy to the new endpoints.
type way struct {
	to    string
	local bool
	svc   types.NamespacedName // a frontend that goes to another Service may for a moment lead to the former one's new endpoints
}

func leads(p *services.Port, local bool) string {
	list := p.Backends
	if local {
		list = p.Local
		if len(list) == 0 && len(p.Backends) > 0 {
			return "dropped"
		}
	}
	if len(list) == 0 {
		return "refused"
	}
	list = slices.Clone(list)
	slices.SortFunc(list, netip.AddrPort.Compare)
	return fmt.Sprint(list)
}

func ways(m map[types.NamespacedName][]services.Port) map[bpf.FrontendKey]way {
	out := map[bpf.FrontendKey]way{}
	for _, ports := range m {
		for i := range ports {
			for _, k := range ports[i].Frontends {
				local := ports[i].Flags[k]&bpf.FrontendLocalPolicy != 0
				out[k] = way{leads(&ports[i], local), local, ports[i].Key.Service}
			}
		}
	}
	return out
}

func verdictOf(st *nat.State, k bpf.FrontendKey) string {
	v := st.Lookup(k)
	if v.Kind != nat.Translated {
		return string(v.Kind)
	}
	slices.SortFunc(v.Backends, netip.AddrPort.Compare)
	return fmt.Sprint(v.Backends)
}

var errKilled = errors.New("killed")

// mortal is a store that takes no write after the one that kills its writer.
type mortal struct {
	*lockedFake
	dead atomic.Bool
}

func (m *mortal) write(do func() error) error {
	if m.dead.Load() {
		return errKilled
	}
	err := do()
	if err != nil {
		m.dead.Store(true)
	}
	return err
}

func (m *mortal) PutGeneration(g uint64) error {
	return m.write(func() error { return m.lockedFake.PutGeneration(g) })
}

func (m *mortal) PutBackends(k []bpf.BackendKey, v []bpf.Backend) error {
	return m.write(func() error { return m.lockedFake.PutBackends(k, v) })
}

func (m *mortal) DeleteBackends(k []bpf.BackendKey) error {
	return m.write(func() error { return m.lockedFake.DeleteBackends(k) })
}

func (m *mortal) PutFrontends(k []bpf.FrontendKey, v []bpf.Frontend) error {
	return m.write(func() error { return m.lockedFake.PutFrontends(k, v) })
}

func (m *mortal) ChangeFrontends(k []bpf.FrontendKey, v []bpf.Frontend) error {
	return m.write(func() error { return m.lockedFake.ChangeFrontends(k, v) })
}

func (m *mortal) DeleteFrontends(k []bpf.FrontendKey) error {
	return m.write(func() error { return m.lockedFake.DeleteFrontends(k) })
}

func (m *mortal) PutServiceStates(at []uint32, w []bpf.ServiceState) error {
	return m.write(func() error { return m.lockedFake.PutServiceStates(at, w) })
}

// Writers are killed between any two writes, and the next one finds other Services. Each frontend leads to where it did
// or to where it shall all the time.
func TestAdoptAfterARestartAtAnyInstant(t *testing.T) {
	seeds := []uint64{3102} // where a port took another's index by a node port
	for seed := range uint64(1000) {
		seeds = append(seeds, seed)
	}
	for _, seed := range seeds {
		s := newStorm(t, seed)
		var before map[bpf.FrontendKey]way
		for round := range 12 {
			s.life(&before)
			if t.Failed() {
				t.Fatalf("seed %d round %d", seed, round)
			}
		}
	}
}

// life is that of one writer, from its start to its kill.
func (s *storm) life(before *map[bpf.FrontendKey]way) {
	store := &mortal{lockedFake: s.f}
	w := New(Config{Store: store, Log: slog.New(slog.DiscardHandler), Lock: func(context.Context) (func() error, error) {
		return func() error { return nil }, nil
	}})
	defer w.Close()
	told := map[types.NamespacedName][]services.Port{}
	for range 1 + s.r.IntN(4) {
		for range s.r.IntN(3) {
			s.change()
		}
		want := s.wanted()
		for name, ports := range want {
			w.Set([]services.Change{{Before: told[name], After: ports}})
		}
		told = want
		after := ways(want)
		s.f.mu.Lock()
		was := *before
		kill := s.r.IntN(6) == 0
		s.f.Fake.FailAfter = 0
		if kill {
			s.f.Fake.FailAfter = s.f.Fake.Writes + 1 + s.r.IntN(12)
		}
		s.f.Fake.Observe = func(st *nat.State) {
			for k, to := range after {
				got := verdictOf(st, k)
				if former, had := was[k]; had && former.local == to.local && former.svc == to.svc && got != to.to && got != former.to {
					s.t.Errorf("%v leads to %s: want %s, as before, or %s", k, got, former.to, to.to)
				}
			}
		}
		s.f.mu.Unlock()
		err := w.Flush(context.Background())
		for err == nil && w.Deferred() {
			err = w.Flush(context.Background())
		}
		s.f.mu.Lock()
		s.f.Fake.Observe = nil
		s.f.mu.Unlock()
		if err != nil {
			// What is there now is what the next one finds.
			s.f.mu.Lock()
			st, _ := s.f.Fake.Read()
			s.f.mu.Unlock()
			now := map[bpf.FrontendKey]way{}
			for k := range after {
				if former, had := was[k]; !had || former.svc != after[k].svc {
					continue // whose it is now, only the killed writer knew
				}
				now[k] = way{verdictOf(st, k), st.Frontends[k].Flags&bpf.FrontendLocalPolicy != 0, after[k].svc}
			}
			*before = now
			return
		}
		s.f.mu.Lock()
		st, _ := s.f.Fake.Read()
		s.f.mu.Unlock()
		for k, to := range after {
			if got := verdictOf(st, k); got != to.to {
				s.t.Errorf("after a flush, %v leads to %s, want %s", k, got, to.to)
			}
		}
		*before = after
	}
}

// A restart: all of the former runtime's indexes stay where they are, so that affinity and counters do.
func TestAdoptKeepsIndexes(t *testing.T) {
	f := nat.NewFake(8192)
	first := newRig(t, f)
	for i := range 9 {
		first.want(fmt.Sprint("s", i), web(fmt.Sprintf("10.96.2.%d:80", i+1), "192.0.2.1:8080"))
	}
	first.flush()
	first.want("s0")
	first.flush()
	first.settle()
	before := first.w.Indexes()

	r := newRig(t, f)
	r.want("new", web("10.96.3.1:80", "192.0.2.9:80"))
	for i := 8; i > 1; i-- { // s1 went while nobody was there
		r.want(fmt.Sprint("s", i), web(fmt.Sprintf("10.96.2.%d:80", i+1), "192.0.2.1:8080"))
	}
	r.flush()
	for index, key := range r.w.Indexes() {
		if key.Service.Name != "new" && before[index] != key {
			t.Errorf("%v has index %d, which was %v's", key, index, before[index])
		}
	}
	r.wantVerdict("10.96.2.2:80", "not a frontend")
	r.wantVerdict("10.96.2.3:80", "[192.0.2.1:8080]")
	r.wantVerdict("10.96.3.1:80", "[192.0.2.9:80]")
}

func TestAdoptTakesOverTheSeed(t *testing.T) {
	f := nat.NewFake(8192)
	seed(t, f, "192.0.2.1:6443")
	r := newRig(t, f)
	r.want("kubernetes", api("192.0.2.1:6443", "192.0.2.2:6443"))
	r.flush()
	r.wantVerdict("10.96.0.1:443", "[192.0.2.1:6443 192.0.2.2:6443]")
	if got := r.w.Indexes(); len(got) != 1 || got[1024].Service.Name != "kubernetes" {
		t.Errorf("indexes %v", got)
	}

	// An init stage that runs meanwhile writes what it found. The next flush has the last word, and no set is used twice.
	seed(t, r.f, "192.0.2.3:6443")
	r.wantVerdict("10.96.0.1:443", "[192.0.2.3:6443]")
	r.want("other", web("10.96.9.9:80", "192.0.2.9:80"))
	r.flush()
	r.wantVerdict("10.96.0.1:443", "[192.0.2.1:6443 192.0.2.2:6443]")
	r.wantVerdict("10.96.9.9:80", "[192.0.2.9:80]")
	if st := r.w.Status(); st.Reloads != 2 {
		t.Errorf("%d reloads, want 2", st.Reloads)
	}
}

// A Service that lost all frontends to another, and found no room itself, must not have an index that a third one gets.
func TestAdoptGivesAnIndexOneOwner(t *testing.T) {
	f := nat.NewFake(8192)
	f.MaxBackends = 4
	r := newRig(t, f)
	r.want("x", web("10.96.2.1:80", "192.0.2.1:80"))
	r.flush()
	big := web("10.96.2.9:80", "192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80", "192.0.2.4:80")
	big.Key.Name = "10.96.2.1:80" // the same port, elsewhere
	r.want("x", big)
	y := web("10.96.2.1:80", "192.0.2.2:80")
	y.Key.Name = "y"
	r.want("y", y)
	r.flush()
	r.settle()
	r.want("z", web("10.96.2.3:80", "192.0.2.3:80"))
	r.flush()
	r.settle()
	f.MaxBackends = 100
	small := web("10.96.2.9:80", "192.0.2.1:80")
	small.Key.Name = big.Key.Name
	r.want("x", small)
	r.want("w", web("10.96.2.4:80", "192.0.2.4:80"))
	r.flush()
	r.wantVerdict("10.96.2.1:80", "[192.0.2.2:80]")
	r.wantVerdict("10.96.2.3:80", "[192.0.2.3:80]")
}

// Once the table's lock is released, an init stage may use its indexes again.
func TestAdoptRemovesTheSeedUnderTheLock(t *testing.T) {
	f := nat.NewFake(8192)
	seed(t, f, "192.0.2.1:6443")
	r := newRig(t, f)
	r.want("kubernetes", api("192.0.2.1:6443"))
	r.w.cfg.Lock = func(context.Context) (func() error, error) {
		return func() error {
			s, err := r.f.Read()
			if w := s.ServiceStates[bpf.ServiceStateAt(1, false)]; w != 0 || r.w.reclaimer.pending() {
				t.Errorf("the lock is released, the seed's word is %#x", uint64(w))
			}
			return err
		}, nil
	}
	r.flush()
	r.wantVerdict("10.96.0.1:443", "[192.0.2.1:6443]")
}
