package writer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/test/lab"
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
func (f *lockedFake) PutRanges(k []bpf.SourceRangeKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Fake.PutSourceRanges(k)
}
func (f *lockedFake) DeleteRanges(k []bpf.SourceRangeKey) error {
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
func (f *lockedFake) PutWords(at []uint32, w []bpf.ServiceState) error {
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
	for i := range ports {
		ports[i].Key.Service = types.NamespacedName{Namespace: "default", Name: name}
		ports[i].Name = name
	}
	r.w.Set([]services.Change{{Before: r.has[name], After: ports}})
	r.has[name] = ports
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

func TestWhatIsSetIsWritten(t *testing.T) {
	r := newRig(t, nil)
	r.want("a", web("10.96.1.1:80", "192.0.2.1:8080"), web("10.96.1.1:443"))
	r.wantVerdict("10.96.1.1:80", "not a frontend")
	r.flush()
	r.wantVerdict("10.96.1.1:80", "[192.0.2.1:8080]")
	r.wantVerdict("10.96.1.1:443", "refused")
	r.want("a", web("10.96.1.1:80", "192.0.2.2:8080"))
	r.flush()
	r.wantVerdict("10.96.1.1:80", "[192.0.2.2:8080]")
	r.wantVerdict("10.96.1.1:443", "refused")
	r.want("a")
	r.flush()
	r.wantVerdict("10.96.1.1:80", "not a frontend")
	r.settle()
	if s, _ := r.f.Read(); len(s.Frontends)+len(s.ServiceStates)+len(s.Sets) != 0 {
		t.Errorf("left over: %+v", s)
	}
	if st := r.w.Status(); st.Ports != 0 || st.Flushes != 3 || !st.Adopted || len(st.Out) != 0 {
		t.Errorf("status %+v", st)
	}
}

func TestUnchangedServicesCauseNoWrite(t *testing.T) {
	r := newRig(t, nil)
	for i := range 20 {
		r.want(fmt.Sprint("s", i), web(fmt.Sprintf("10.96.2.%d:80", i+1), "192.0.2.1:8080", "192.0.2.2:8080"))
	}
	r.flush()
	writes := r.f.Writes
	for i := range 20 {
		r.want(fmt.Sprint("s", i), web(fmt.Sprintf("10.96.2.%d:80", i+1), "192.0.2.2:8080", "192.0.2.1:8080"))
	}
	r.flush()
	if r.f.Writes != writes {
		t.Errorf("%d writes for nothing", r.f.Writes-writes)
	}
}

// A restart: all of the former runtime's indexes stay where they are, so that affinity and counters do.
func TestATableIsAdopted(t *testing.T) {
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

func TestTheSeedIsTakenOver(t *testing.T) {
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

// Rule 1, "never empty": whoever asks for it, the API service keeps what it has.
func TestTheAPIServiceIsNeverEmpty(t *testing.T) {
	f := nat.NewFake(8192)
	seed(t, f, "192.0.2.1:6443")
	r := newRig(t, f)
	r.want("kubernetes", api())
	r.flush()
	r.wantVerdict("10.96.0.1:443", "[192.0.2.1:6443]")
	r.want("kubernetes", api("192.0.2.2:6443"))
	r.flush()
	r.want("kubernetes", api())
	r.flush()
	r.wantVerdict("10.96.0.1:443", "[192.0.2.2:6443]")
	if st := r.w.Status(); len(st.Out) != 1 || !strings.Contains(st.Out[0].Err, "without a backend") || st.Out[0].Full {
		t.Errorf("status %+v", st)
	}
	if n := strings.Count(r.log.String(), "without a backend"); n != 2 {
		t.Errorf("told %d times, want once each: %s", n, r.log)
	}
}

func TestAFullTableKeepsWhatItHas(t *testing.T) {
	f := nat.NewFake(8192)
	f.MaxFrontends = 12 // two for each Service
	r := newRig(t, f)
	for i := range 8 {
		r.want(fmt.Sprint("s", i), web(fmt.Sprintf("10.96.2.%d:80", i+1), "192.0.2.1:8080"))
	}
	r.flush()
	r.want("kubernetes", api("192.0.2.1:6443"))
	r.flush()
	st := r.w.Status()
	if len(st.Out) != 3 || !st.Out[0].Full || st.Frontends != 12 || st.Room.Frontends != 12 {
		t.Fatalf("status %+v", st)
	}
	r.wantVerdict("10.96.2.1:80", "[192.0.2.1:8080]")
	r.wantVerdict("10.96.2.8:80", "not a frontend")

	// Whoever else serves one that is out may do so; an address that no Service has is refused.
	r.w.SetServiceRange([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}, nil)
	r.flush()
	r.wantVerdict("10.96.2.8:80", "not a frontend")
	r.wantVerdict("10.96.2.9:80", "refused")

	// Room that is made goes to the API service first, once what had it is gone.
	r.want("s0")
	r.flush()
	<-r.room
	r.flush()
	r.wantVerdict("10.96.0.1:443", "[192.0.2.1:6443]")
	// Changes of Services that are in go on.
	r.want("s1", web("10.96.2.2:80", "192.0.2.7:8080"))
	r.flush()
	r.wantVerdict("10.96.2.2:80", "[192.0.2.7:8080]")
	if st := r.w.Status(); len(st.Out) != 2 {
		t.Errorf("out: %+v", st.Out)
	}
	r.want("s7") // which never was in
	r.flush()
	lab.Await(t, "its address is refused", func() bool { return r.verdict("10.96.2.8:80") == "refused" })
}

// A Service that lost all frontends to another, and found no room itself, must not have an index that a third one gets.
func TestAnIndexHasOneOwner(t *testing.T) {
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

// Room for backends comes back only when what was replaced is removed: the writer asks to be flushed then.
func TestRoomOfReplacedBackends(t *testing.T) {
	f := nat.NewFake(8192)
	f.MaxBackends = 3
	r := newRig(t, f)
	r.f.holds = make(chan struct{})
	r.want("a", web("10.96.2.1:80", "192.0.2.1:80", "192.0.2.2:80"))
	r.flush()
	r.want("a", web("10.96.2.1:80", "192.0.2.3:80"))
	r.flush()
	r.want("b", web("10.96.2.2:80", "192.0.2.1:80", "192.0.2.2:80"))
	r.flush()
	r.wantVerdict("10.96.2.2:80", "not a frontend")
	close(r.f.holds)
	<-r.room
	r.flush()
	r.wantVerdict("10.96.2.2:80", "[192.0.2.1:80 192.0.2.2:80]")
}

func TestEditsOfOthersAreMended(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(r *rig)
	}{
		{"a frontend that is gone", func(r *rig) { r.f.DeleteFrontends([]bpf.FrontendKey{tcp("10.96.2.1:80")}) }},
		{"a frontend that leads elsewhere", func(r *rig) {
			r.f.PutFrontends([]bpf.FrontendKey{tcp("10.96.2.1:80")}, []bpf.Frontend{{Index: 1025}})
		}},
		{"a word that is empty", func(r *rig) { r.f.PutWords([]uint32{bpf.ServiceStateAt(1024, false)}, []bpf.ServiceState{0}) }},
		{"a backend that is gone", func(r *rig) { r.f.DeleteBackends([]bpf.BackendKey{{Set: 1, Slot: 0}}) }},
		{"a backend that is another", func(r *rig) {
			r.f.PutBackends([]bpf.BackendKey{{Set: 1, Slot: 0}}, []bpf.Backend{{Port: bpf.PortOf(6666)}})
		}},
		{"a frontend of the runtime's that nobody wants", func(r *rig) {
			r.f.PutFrontends([]bpf.FrontendKey{tcp("10.96.6.6:80")}, []bpf.Frontend{{Index: 1999}})
		}},
		{"a source range that nobody wants", func(r *rig) {
			r.f.PutRanges([]bpf.SourceRangeKey{bpf.SourceRangeKeyOf(1024, netip.MustParsePrefix("10.0.0.0/8"))})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.want("a", web("10.96.2.1:80", "192.0.2.1:80", "192.0.2.2:80"))
			r.want("b", web("10.96.2.2:80", "192.0.2.3:80"))
			r.flush()
			if mended, err := r.w.Verify(t.Context()); mended || err != nil {
				t.Fatalf("before: %v, %v", mended, err)
			}
			before, _ := r.f.Read()
			tc.edit(r)
			if mended, err := r.w.Verify(t.Context()); !mended || err != nil {
				t.Errorf("mended: %v, %v", mended, err)
			}
			r.settle()
			r.wantVerdict("10.96.2.1:80", "[192.0.2.1:80 192.0.2.2:80]")
			r.wantVerdict("10.96.2.2:80", "[192.0.2.3:80]")
			r.wantVerdict("10.96.6.6:80", "not a frontend")
			after, _ := r.f.Read()
			if len(after.Frontends) != len(before.Frontends) || len(after.SourceRanges) != 0 || len(after.Sets) != len(before.Sets) {
				t.Errorf("was %+v, is %+v", before, after)
			}
			if mended, err := r.w.Verify(t.Context()); mended || err != nil {
				t.Errorf("again: %v, %v", mended, err)
			}
			if st := r.w.Status(); st.Repairs != 1 {
				t.Errorf("%d repairs", st.Repairs)
			}
		})
	}
}

func TestAFailedWriteIsTriedAgain(t *testing.T) {
	r := newRig(t, nil)
	r.want("a", web("10.96.2.1:80", "192.0.2.1:80"))
	r.flush()
	r.want("a", web("10.96.2.1:80", "192.0.2.2:80"))
	r.want("b", web("10.96.2.2:80", "192.0.2.3:80"))
	r.f.broken = errors.New("the kernel says no")
	if err := r.w.Flush(t.Context()); err == nil || !strings.Contains(err.Error(), "the kernel says no") {
		t.Errorf("got %v", err)
	}
	r.wantVerdict("10.96.2.1:80", "[192.0.2.1:80]")
	r.flush()
	r.wantVerdict("10.96.2.1:80", "[192.0.2.2:80]")
	r.wantVerdict("10.96.2.2:80", "[192.0.2.3:80]")
}

// The memory of a frontend that went may be read until a grace period is over: no other may be written to it before.
func TestNoFrontendComesBeforeOthersAreReallyGone(t *testing.T) {
	r := newRig(t, nil)
	r.want("a", web("10.96.2.1:80", "192.0.2.1:80"))
	r.want("b", web("10.96.2.2:80", "192.0.2.2:80"))
	r.want("d", web("10.96.2.4:80", "192.0.2.4:80"))
	r.want("e", web("10.96.2.5:80", "192.0.2.5:80"))
	r.flush()
	r.f.holds = make(chan struct{})
	r.want("a")
	r.flush()
	r.want("b", web("10.96.2.2:80", "192.0.2.9:80")) // needs no frontend, so it need not wait
	r.flush()
	r.wantVerdict("10.96.2.2:80", "[192.0.2.9:80]")
	// What goes, and what comes, is of one piece; endpoints are not held up by it.
	r.want("b", web("10.96.2.2:80", "192.0.2.8:80"))
	r.want("c", web("10.96.2.3:80", "192.0.2.3:80"))
	r.want("d")
	moved := web("10.96.2.6:80", "192.0.2.5:80")
	moved.Key.Name = "10.96.2.5:80"
	r.want("e", moved)
	r.flush()
	r.wantVerdict("10.96.2.2:80", "[192.0.2.8:80]")
	r.wantVerdict("10.96.2.3:80", "not a frontend")
	r.wantVerdict("10.96.2.4:80", "[192.0.2.4:80]")
	r.wantVerdict("10.96.2.5:80", "[192.0.2.5:80]")
	if !r.w.Deferred() || !r.w.Pending() {
		t.Error("nothing is held")
	}
	close(r.f.holds)
	<-r.room
	r.flush()
	r.wantVerdict("10.96.2.3:80", "[192.0.2.3:80]")
	r.wantVerdict("10.96.2.4:80", "not a frontend")
	r.wantVerdict("10.96.2.5:80", "not a frontend")
	r.wantVerdict("10.96.2.6:80", "[192.0.2.5:80]")
	if r.w.Deferred() || r.w.Pending() {
		t.Error("something is held")
	}
}

// What waits for frontends to go must be written, also where nobody can say whether they went.
func TestWhatIsHeldIsWrittenAfterAFailure(t *testing.T) {
	r := newRig(t, nil)
	r.want("a", web("10.96.2.1:80", "192.0.2.1:80"))
	r.flush()
	r.f.holds = make(chan struct{})
	r.f.unsure = errors.New("no grace")
	r.want("a")
	r.flush()
	r.want("b", web("10.96.2.2:80", "192.0.2.2:80"))
	r.flush()
	close(r.f.holds)
	<-r.room
	r.flush()
	r.wantVerdict("10.96.2.2:80", "[192.0.2.2:80]")
}

// Changes that come faster than grace periods end may not fill the table with what is to be removed.
func TestWhatIsReplacedLeavesRoom(t *testing.T) {
	f := nat.NewFake(8192)
	f.MaxBackends = 4 * (leastBacklog + 100)
	r := newRig(t, f)
	change := func(n int) {
		for i := range 100 {
			r.want(fmt.Sprint("s", i), web(numbered(i), fmt.Sprintf("192.0.2.%d:80", 2*n+1), fmt.Sprintf("192.0.2.%d:80", 2*n+2)))
		}
		r.flush()
	}
	change(0)
	r.f.holds = make(chan struct{})
	flushed := make(chan int)
	go func() {
		for n := range 40 {
			change(n + 1)
			flushed <- n
		}
		close(flushed)
	}()
	for waits := false; !waits; {
		select {
		case _, more := <-flushed:
			if !more {
				t.Errorf("nothing waits: %d are out", len(r.w.Status().Out))
				waits = true
			}
		case <-time.After(300 * time.Millisecond):
			waits = true
		}
	}
	close(r.f.holds)
	for range flushed {
	}
	if st := r.w.Status(); len(st.Out) > 0 || strings.Contains(r.log.String(), "full") {
		t.Errorf("%d are out: %.500s", len(st.Out), r.log)
	}
}

// What an earlier plan is about to remove may not be written before it did.
func TestWhatIsAboutToGoComesBackAfterwards(t *testing.T) {
	r := newRig(t, nil)
	limited := web("10.96.2.1:80", "192.0.2.1:80")
	limited.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{limited.Frontends[0]: bpf.FrontendSourceRange}
	limited.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	r.want("a", limited)
	r.flush()
	r.f.holds = make(chan struct{})
	r.want("a", web("10.96.2.1:80", "192.0.2.1:80"))
	r.flush()
	r.want("a", limited)
	flushed := make(chan struct{})
	go func() { r.flush(); close(flushed) }()
	select {
	case <-flushed:
		t.Error("the source range was written while it was about to go")
	case r.f.holds <- struct{}{}:
	}
	close(r.f.holds)
	<-flushed
	r.settle()
	if s, _ := r.f.Read(); !s.SourceRanges[bpf.SourceRangeKeyOf(1024, limited.SourceRanges[0])] {
		t.Error("the source range is gone")
	}
}

// The init stage writes while something is still to be removed: the planner that reads the table then must not use what is.
func TestATableIsReadWhenAllThatWasToGoIsGone(t *testing.T) {
	r := newRig(t, nil)
	r.want("a", web("10.96.2.1:80", "192.0.2.1:80"))
	r.flush()
	r.f.holds = make(chan struct{})
	r.want("a")
	r.flush()
	quiet := r.f.Fake // the init stage's grace period isn't held up
	r.f.mu.Lock()
	seed(t, quiet, "192.0.2.9:6443")
	r.f.mu.Unlock()
	r.want("c", web("10.96.2.3:80", "192.0.2.3:80"))
	flushed := make(chan struct{})
	go func() { r.flush(); close(flushed) }()
	r.f.holds <- struct{}{}
	close(r.f.holds)
	<-flushed
	r.settle()
	r.wantVerdict("10.96.2.3:80", "[192.0.2.3:80]")
}

// Once the table's lock is released, an init stage may use its indexes again.
func TestTheSeedIsGoneWhenItWasTakenOver(t *testing.T) {
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

// What was replaced is told to be gone while the writer waits for the next to go: neither may wait for the other.
func TestAWriteThatWaitsForFrontendsIsNotWaitedFor(t *testing.T) {
	r := newRig(t, nil)
	r.want("a", web("10.96.1.1:80", "192.0.2.1:8080"))
	r.want("b", web("10.96.1.2:80", "192.0.2.1:8080"))
	r.flush()
	r.f.holds = make(chan struct{})
	r.want("a")
	r.flush()
	r.want("b")

	r.w.work.Lock() // two flushes that get the Writer before that what the first replaced is told to be gone
	close(r.f.holds)
	for r.w.reclaimer.pending() {
	}
	if err := r.w.write(); err != nil {
		t.Fatal(err)
	}
	key := services.PortKey{Service: types.NamespacedName{Namespace: "default", Name: "c"}}
	r.w.mu.Lock()
	svc := web("10.96.1.3:80", "192.0.2.1:8080").Service
	r.w.ports[key], r.w.queue.dirty[key] = &port{svc: &svc}, true
	r.w.mu.Unlock()
	done := make(chan error)
	go func() { done <- r.w.write() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(3 * time.Second):
		panic("a write waits for frontends that nobody takes away") // a failure would wait for the same
	}
	r.w.work.Unlock()
	for r.w.Pending() {
		r.flush()
	}
	r.wantVerdict("10.96.1.3:80", "[192.0.2.1:8080]")
}
