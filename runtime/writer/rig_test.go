package writer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/services"
)

// rig is a writer on a table in memory. What it logs is kept.
type rig struct {
	t     *testing.T
	f     *lockedFake
	w     *Writer
	log   *bytes.Buffer
	room  chan struct{}
	locks int
	has   map[string][]services.Port
}

// lockedFake lets a writer and what it retires meet.
type lockedFake struct {
	mu sync.Mutex
	*nat.Fake
	broken error // of the next write of frontends
	holds  chan struct{}
	unsure error // of waiting for programs
}

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
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Fake.PutGeneration(g)
}

func (f *lockedFake) PutSourceRanges(k []bpf.SourceRangeKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Fake.PutSourceRanges(k)
}

func (f *lockedFake) DeleteSourceRanges(k []bpf.SourceRangeKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Fake.DeleteSourceRanges(k)
}

func (f *lockedFake) DeleteBackends(k []bpf.BackendKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Fake.DeleteBackends(k)
}

func (f *lockedFake) PutBackends(k []bpf.BackendKey, v []bpf.Backend) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Fake.PutBackends(k, v)
}

func (f *lockedFake) PutServiceStates(at []uint32, w []bpf.ServiceState) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Fake.PutServiceStates(at, w)
}

func (f *lockedFake) PutFrontends(k []bpf.FrontendKey, v []bpf.Frontend) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.broken; err != nil {
		f.broken = nil
		return err
	}
	return f.Fake.PutFrontends(k, v)
}

func (f *lockedFake) ChangeFrontends(k []bpf.FrontendKey, v []bpf.Frontend) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Fake.ChangeFrontends(k, v)
}

func (f *lockedFake) DeleteFrontends(k []bpf.FrontendKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Fake.DeleteFrontends(k)
}

func (f *lockedFake) Synchronize() error {
	if f.holds != nil {
		<-f.holds
	}
	return f.unsure
}

func newRig(t *testing.T, f *nat.Fake) *rig {
	t.Helper()
	if f == nil {
		f = nat.NewFake(8192)
	}
	r := &rig{t: t, f: &lockedFake{Fake: f}, log: &bytes.Buffer{}, room: make(chan struct{}, 100), has: map[string][]services.Port{}}
	r.w = New(Config{
		Store: r.f, Log: slog.New(slog.NewTextHandler(r.log, nil)),
		Lock:   func(context.Context) (func() error, error) { r.locks++; return func() error { return nil }, nil },
		Notify: func() { r.room <- struct{}{} },
	})
	t.Cleanup(r.w.Close)
	return r
}

// want says what a Service shall be: nothing without backends.
func (r *rig) want(name string, ports ...services.Port) {
	setService(r.w, r.has, name, ports)
}

// setService tells the writer that a Service has these ports now; has is what every Service had before.
func setService(w *Writer, has map[string][]services.Port, name string, ports []services.Port) {
	for i := range ports {
		ports[i].Key.Service = types.NamespacedName{Namespace: "default", Name: name}
		ports[i].Name = name
	}
	w.Set([]services.Change{{Before: has[name], After: ports}})
	has[name] = ports
}

// flush writes all, but for what is held while a test holds grace periods up.
func (r *rig) flush() {
	r.t.Helper()
	for again := true; again; again = r.w.Deferred() && r.f.holds == nil {
		if err := r.w.Flush(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
	}
}

func tcp(s string) bpf.FrontendKey { return bpf.FrontendKeyOf(netip.MustParseAddrPort(s), bpf.TCP) }

func web(front string, backends ...string) services.Port {
	k := tcp(front)
	p := services.Port{Service: nat.Service{Frontends: []bpf.FrontendKey{k}, VIPs: []netip.Addr{k.Addr.Addr()}, AllowEmpty: true}}
	p.Key.Name = k.AddrPort().String()
	for _, b := range backends {
		p.Backends = append(p.Backends, netip.MustParseAddrPort(b))
	}
	return p
}

func (r *rig) verdict(front string) string {
	r.t.Helper()
	s, err := r.f.Read()
	if err != nil {
		r.t.Fatal(err)
	}
	v := s.Lookup(tcp(front))
	if v.Kind != nat.Translated {
		return string(v.Kind)
	}
	slices.SortFunc(v.Backends, netip.AddrPort.Compare)
	return fmt.Sprint(v.Backends)
}

func (r *rig) wantVerdict(front, want string) {
	r.t.Helper()
	if got := r.verdict(front); got != want {
		r.t.Errorf("%s: %s, want %s", front, got, want)
	}
}

// settle waits for what was replaced to be gone.
func (r *rig) settle() {
	for r.w.reclaimer.pending() {
	}
}

func seed(t *testing.T, f nat.Store, backends ...string) {
	t.Helper()
	s, err := f.Read()
	if err != nil {
		t.Fatal(err)
	}
	p := nat.NewPlanner(s, nat.InitIndexes)
	svc := web("10.96.0.1:443", backends...).Service
	if err := p.Ensure(svc); errors.Is(err, nat.ErrOwned) {
		index, _, _ := p.Owner(svc)
		err = p.Replace(index, svc.Backends)
		if err != nil {
			t.Fatal(err)
		}
	} else if err != nil {
		t.Fatal(err)
	}
	applied, err := nat.Apply(f, p.Plan())
	if err == nil {
		err = applied.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func api(backends ...string) services.Port {
	p := web("10.96.0.1:443", backends...)
	p.AllowEmpty = false
	return p
}
