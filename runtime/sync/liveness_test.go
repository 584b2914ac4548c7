package sync

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/runtime/health"
	"github.com/firsthop/firsthop/test/lab"
)

// hang makes the table's next write wait until release is called, as one that waits for the kernel or for a disk does.
func (r *rig) hang() (hangs func() bool, release func()) {
	gate := make(chan struct{})
	var begun atomic.Bool
	r.f.before.Store(new(func() {
		begun.Store(true)
		<-gate
	}))
	return begun.Load, func() {
		r.f.before.Store(nil)
		close(gate)
	}
}

// starts runs the Loop until the test ends.
func (r *rig) starts() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { r.l.Run(ctx); close(done) }()
	r.t.Cleanup(func() { cancel(); <-done })
}

// atOnce is what an answer takes, on a machine that has other work.
const atOnce = time.Second

// quick fails the test where do takes longer than an answer may.
func quick(t *testing.T, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { do(); close(done) }()
	select {
	case <-done:
	case <-time.After(atOnce):
		t.Fatalf("%s hangs with the write", what)
	}
}

// A write that hangs is what /livez is there to tell of: it must not hang along, nor may what else is asked or told.
func TestLivenessOfAWriteThatHangs(t *testing.T) {
	r := newRig(t)
	var fed atomic.Int32
	const overdue = 300 * time.Millisecond
	proxy := health.NewProxy(health.ProxyConfig{Waiting: r.l.liveness.Late, Applied: r.l.liveness.Applied, Timeout: overdue})
	livez := func() (code int) {
		t.Helper()
		quick(t, "/livez", func() {
			w := httptest.NewRecorder()
			proxy.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/livez", nil))
			code = w.Code
			var body struct{ Healthy bool }
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Healthy != (code == http.StatusOK) {
				t.Errorf("%d with %s (%v)", code, w.Body, err)
			}
		})
		return code
	}
	r.starts()
	go r.l.liveness.watchdog(t.Context(), 3*time.Millisecond, overdue, func() { fed.Add(1) })
	if code := livez(); code != http.StatusOK {
		t.Errorf("before the first update: %d", code)
	}
	r.tell(kubernetes("192.0.2.10")...)
	r.syncAll()
	lab.Await(t, "the first write", func() bool { return !r.l.liveness.Applied().IsZero() && r.l.liveness.Waiting().IsZero() })
	if code := livez(); code != http.StatusOK {
		t.Errorf("idle: %d", code)
	}
	lab.Await(t, "the watchdog is fed", func() bool { return fed.Load() > 0 })

	hangs, release := r.hang()
	defer func() { release() }()
	r.tell(slice("kubernetes", 6443, corev1.ProtocolTCP, "192.0.2.11"))
	lab.Await(t, "the write hangs", hangs)
	for _, what := range []string{"a", "b"} { // two: the first might only be kept for later
		quick(t, "news", func() { r.tell(service("web-"+what, "10.96.1.1", 80, corev1.ProtocolTCP)) })
	}
	quick(t, "what status says", func() {
		if r.l.liveness.Waiting().IsZero() {
			t.Error("status knows of nothing that waits")
		}
		r.l.Problems()
		r.l.APIAddrs()
		r.l.Kinds()
		if r.l.cfg.Writer.Full() || !r.l.cfg.Writer.Status().Adopted || len(r.l.cfg.Writer.Ports()) == 0 || len(r.l.cfg.Writer.Indexes()) == 0 {
			t.Errorf("%+v", r.l.cfg.Writer.Status())
		}
	})
	lab.Await(t, "/livez says 503", func() bool { return livez() == http.StatusServiceUnavailable })
	lab.Await(t, "the watchdog is not fed any more", func() bool {
		before := fed.Load()
		time.Sleep(50 * time.Millisecond)
		return fed.Load() == before
	})

	release()
	release = func() {}
	lab.Await(t, "/livez says 200 again", func() bool { return livez() == http.StatusOK })
	before := fed.Load()
	lab.Await(t, "the watchdog is fed again", func() bool { return fed.Load() > before })
	lab.Await(t, "all is written", func() bool { return r.l.liveness.Waiting().IsZero() })
	r.want("10.96.0.1:443", "[192.0.2.11:6443]")
}

// Before the first write nothing is late, and of a comparison nobody waits for the end: that they hang is seen all the same.
func TestLivenessOfWorkThatDoesNotEnd(t *testing.T) {
	const overdue = 100 * time.Millisecond
	r := newRig(t)
	hangs, release := r.hang()
	defer release()
	r.tell(kubernetes("192.0.2.10")...)
	r.syncAll()
	if r.l.liveness.stuck(overdue) {
		t.Error("stuck before anything was tried")
	}
	r.starts()
	lab.Await(t, "the first write hangs", hangs)
	lab.Await(t, "that is seen", func() bool { return r.l.liveness.stuck(overdue) })
	if late := r.l.liveness.Late(); !late.IsZero() {
		t.Errorf("/livez is told that the first write is late (%v): it may be waiting for API servers", late)
	}
}

// A client that hangs on to what was, because the change that came during a write was forgotten, would never be told.
func TestLivenessOfWhatComesDuringAWrite(t *testing.T) {
	var p Liveness
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	for _, tc := range []struct {
		name string
		do   func()
		want time.Time
	}{
		{"nothing was queued", func() {}, time.Time{}},
		{"the first of two changes counts", func() { p.queue(at(1)); p.queue(at(2)) }, at(1)},
		{"a write that begins ends nothing", func() { p.take() }, at(1)},
		{"nor does one that fails", func() { p.queue(at(3)); p.take() }, at(1)},
		{"what came after its begin waits on", func() { p.queue(at(4)); p.queue(at(5)); p.wrote(at(6), false) }, at(4)},
		{"all is written", func() { p.take(); p.wrote(at(7), false) }, time.Time{}},
		{"but for what found no end", func() { p.queue(at(8)); p.take(); p.wrote(at(9), true) }, at(9)},
		{"a change that comes during a write of nothing waits", func() { p.take(); p.wrote(at(10), false); p.take(); p.queue(at(11)) }, at(11)},
		{"and waits on after it", func() { p.wrote(at(12), false) }, at(11)},
		{"or after it failed", func() { p.take(); p.wrote(at(13), false); p.take(); p.queue(at(14)); p.take() }, at(14)},
		{"until it is written", func() { p.wrote(at(9), false) }, time.Time{}},
	} {
		tc.do()
		if got := p.Waiting(); !got.Equal(tc.want) {
			t.Errorf("%s: waits since %v, want %v", tc.name, got, tc.want)
		}
	}
	if !p.Applied().Equal(at(9)) {
		t.Errorf("applied at %v", p.Applied())
	}
}
