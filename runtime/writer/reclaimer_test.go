package writer

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/services"
)

// Room for backends comes back only when what was replaced is removed: the writer asks to be flushed then.
func TestReclaimerFreesCapacityOfBackends(t *testing.T) {
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

// Changes that come faster than grace periods end may not fill the table with what is to be removed.
func TestReclaimerLimitsItsBacklog(t *testing.T) {
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
func TestReclaimerConflictsWait(t *testing.T) {
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
func TestReclaimerDrainsBeforeTheTableIsRead(t *testing.T) {
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

// What was replaced is told to be gone while the writer waits for the next to go: neither may wait for the other.
func TestReclaimerIsNotWaitedForInTurn(t *testing.T) {
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
