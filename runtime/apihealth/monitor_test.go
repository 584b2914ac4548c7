package apihealth

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/test/standin"
)

// promised is how long a dead API server may stay in the API service.
const promised = 2 * time.Second

func TestMonitorDropsADeadServerWithinTwoSeconds(t *testing.T) {
	for _, tc := range []struct {
		name string
		kind apiserver.Kind
		// fail makes the server at a1 fail, and returns what heals it.
		fail func(r *rig, s *standin.APIServer, g *gate) (heal func())
	}{
		{"its process is killed", apiserver.KindRefused, func(r *rig, s *standin.APIServer, _ *gate) func() {
			s.Close()
			return func() { r.serve(a1) }
		}},
		{"its machine loses power", apiserver.KindTimeout, func(r *rig, s *standin.APIServer, _ *gate) func() {
			r.silence(a1)
			return func() { r.unsilence(a1) }
		}},
		{"it hangs after it has accepted", apiserver.KindTimeout, func(_ *rig, _ *standin.APIServer, g *gate) func() {
			g.freeze()
			return g.thaw
		}},
		{"nobody accepts, and the queue is full", apiserver.KindTimeout, func(r *rig, s *standin.APIServer, _ *gate) func() {
			s.Close()
			free := r.fullQueue(a1)
			return func() { free(); r.serve(a1) }
		}},
		{"it says 500", apiserver.KindHTTP, func(_ *rig, s *standin.APIServer, _ *gate) func() {
			s.SetReady(false)
			return func() { s.SetReady(true) }
		}},
		{"another cluster's server takes its address", apiserver.KindTLS, func(r *rig, s *standin.APIServer, _ *gate) func() {
			s.Close()
			other, err := standin.NewAuthority()
			if err != nil {
				r.t.Fatal(err)
			}
			unknown := r.serveAs(a1, other)
			return func() { unknown.Close(); r.serve(a1) }
		}},
		{"a router says that it is unreachable", apiserver.KindUnreachable, func(r *rig, _ *standin.APIServer, _ *gate) func() {
			if err := r.l.DelAddr(prefix(a1)); err != nil {
				r.t.Fatal(err)
			}
			if err := r.l.Unreachable(prefix(a1)); err != nil {
				r.t.Fatal(err)
			}
			return func() { r.unsilence(a1) }
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // each waits most of the time
			r := newRig(t)
			r.cfg.Interval = 0 // the promise is about the defaults
			var g *gate
			at := a1
			if tc.name == "it hangs after it has accepted" {
				at = "192.0.2.11:16443"
				g = r.gate(a1, at)
			}
			s := r.serve(at)
			r.serve(a2)
			r.run().SetEndpoints(addrs(a1, a2))
			r.await(a1, a2)
			before := r.changes()
			heal := tc.fail(r, s, g)
			if d := r.await(a2); d > promised {
				t.Errorf("out after %v", d)
			}
			e := r.m.Status().endpoint(a1)
			if e.Kind != tc.kind || e.Err == "" || e.State == apiserver.Live || e.InUse {
				t.Errorf("status says %+v, want kind %q", e, tc.kind)
			}
			r.until("one more failure", func(s Status) bool { return s.endpoint(a1).Failures > 1 })
			heal()
			if d := r.await(a1, a2); d > deadInterval+DefaultTimeout+promised/4 {
				t.Errorf("back after %v", d)
			}
			if n := r.changes() - before; n != 2 {
				t.Errorf("%d changes, want one out, one in", n)
			}
		})
	}
}

func TestMonitorKeepsTheLastKnownGoodWhenNothingAnswers(t *testing.T) {
	r := newRig(t)
	one, two := r.serve(a1), r.serve(a2)
	r.run().SetEndpoints(addrs(a1, a2))
	r.await(a1, a2)
	one.Close()
	r.await(a2)
	two.Close()
	r.until("both dead", func(s Status) bool { return !s.Live })
	r.m.SetEndpoints(nil)
	r.m.mu.Lock()
	if text(r.m.named) != a1+" "+a2 {
		t.Errorf("an empty list has made %v of what the API named before", r.m.named)
	}
	r.m.mu.Unlock()
	r.m.SetEndpoints(addrs("192.0.2.99:1"))
	r.until("a dead one of the API's", func(s Status) bool { return s.endpoint("192.0.2.99:1").State == apiserver.Dead })
	if s := r.m.Status(); text(s.Set.V4) != a2 || r.set() != a2 {
		t.Errorf("leads to %v", s.Set)
	}
	// One that the API no longer names, but that once lived.
	r.serve(a1)
	r.await(a1)
	if s := r.m.Status(); !s.Live {
		t.Errorf("status is %+v", s)
	}
}

func TestMonitorDecidesForEachFamily(t *testing.T) {
	r := newRig(t)
	r.serve(a1)
	six := r.serve(b1)
	r.run().SetEndpoints(addrs(a1, b1))
	r.await(a1, b1)
	six.Close()
	r.until("dead", func(s Status) bool { return s.endpoint(b1).State == apiserver.Dead })
	if r.set() != a1+" "+b1 {
		t.Errorf("leads to %s: IPv6 has nothing better", r.set())
	}
}

func TestMonitorUsesGivenEndpointsAlone(t *testing.T) {
	r := newRig(t)
	r.serve(a1)
	lb := r.serve(a2)
	r.serve(a3)
	r.kubeletConf(a2, r.ca)
	r.cfg.Explicit = endpoints(t, a1+",127.0.0.1:6443")
	r.serve("127.0.0.1:6443")
	m := r.run()
	m.SetEndpoints(addrs(a3))
	r.await("127.0.0.1:6443", a1)
	if len(m.Status().Endpoints) != 2 || lb.Accepted() != 0 {
		t.Errorf("asked are %+v", m.Status().Endpoints)
	}
}

func TestMonitorAsksTheSecondTierOnlyWhileTheFirstIsDead(t *testing.T) {
	r := newRig(t)
	r.serve(a1)
	lb := r.serve(a2)
	r.cfg.Adopted = addrs(a1)
	r.kubeletConf(a2, r.ca)
	m := r.run()
	r.until("the first tier answers", func(s Status) bool { return s.endpoint(a1).Probes > 2 })
	m.SetEndpoints(addrs(a3)) // nobody is there
	r.await(a1, a2)           // the one before is remembered
	one := r.serve(a3)
	r.await(a3)
	asked := lb.Accepted()
	r.until("only the first tier is asked", func(s Status) bool { return len(s.Endpoints) == 1 && s.endpoint(a3).Probes > 3 })
	if asked != 1 || lb.Accepted() != 1 {
		t.Errorf("the load balancer has seen %d connections, then %d", asked, lb.Accepted())
	}
	one.Close()
	r.await(a1, a2)
}

func TestMonitorDoesNotReportAdoptedAddresses(t *testing.T) {
	r := newRig(t)
	r.serve(a1)
	r.serve(a2)
	r.cfg.Adopted = addrs(a2, a1)
	m := r.run()
	r.until("live", func(s Status) bool { return s.Live })
	m.SetEndpoints(addrs(a1, a2))
	r.until("the API's", func(s Status) bool { return s.endpoint(a1).Source == apiserver.SourceAPI && s.endpoint(a1).Probes > 1 })
	if r.changes() != 0 {
		t.Errorf("was told %s", r.set())
	}
}

func TestMonitorReportsNewEndpointsTogether(t *testing.T) {
	r := newRig(t)
	r.serve(a1)
	r.serve(a2)
	r.serve(a3)
	r.run().SetEndpoints(addrs(a1, a2, a3))
	r.await(a1, a2, a3)
	r.m.SetEndpoints(addrs(a2, a3))
	r.await(a2, a3)
	if r.changes() != 2 {
		t.Errorf("%d changes", r.changes())
	}
}

// Nothing answers and nothing ever has: what is known is a guess, and better than nothing.
func TestMonitorGuessesWithoutAnyLiveServer(t *testing.T) {
	r := newRig(t)
	s := r.serve(a2)
	s.SetReady(false)
	m := r.run()
	m.SetEndpoints(addrs(a1))
	r.await(a1)
	m.SetEndpoints(addrs(a1, a2))
	r.await(a2)
	s.SetReady(true)
	r.until("live", func(s Status) bool { return s.Live })
}

func TestMonitorRefusesToRunTwice(t *testing.T) {
	r := newRig(t)
	m := r.run()
	r.until("running", func(s Status) bool { return s.Counters.Looks > 0 })
	if err := m.Run(t.Context()); err == nil {
		t.Error("ran twice")
	}
	for _, cfg := range []Config{{}, {Log: r.cfg.Log}, {OnChange: r.cfg.OnChange}, {Log: r.cfg.Log, OnChange: r.cfg.OnChange, CA: []byte("x")}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("accepted %+v", cfg)
		}
	}
}

// A server that is slow or says that it is not ready still serves; a dead one does not.
func TestMonitorUsesAServerThatAnswersBeforeADeadOne(t *testing.T) {
	for name, sick := range map[string]func(*standin.APIServer, bool){
		"not ready": func(s *standin.APIServer, is bool) { s.SetReady(!is) },
		"slow": func(s *standin.APIServer, is bool) {
			if is {
				s.SetDelay(time.Minute)
			} else {
				s.SetDelay(0)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			one, two := r.serve(a1), r.serve(a2)
			r.run().SetEndpoints(addrs(a1, a2))
			r.await(a1, a2)
			sick(one, true)
			r.await(a2)
			two.Close()
			r.await(a1)
			if s := r.m.Status(); s.Live || !s.Answering {
				t.Errorf("live %v, answering %v", s.Live, s.Answering)
			}
			if order := r.m.dialOrder(0); len(order) == 0 || order[0].Addr.String() != a1 {
				t.Errorf("dials %v", order)
			}
			one.Close()
			r.until("nothing answers", func(s Status) bool { return !s.Answering })
			if r.set() != a1 {
				t.Errorf("leads to %s when nothing answers, want %s", r.set(), a1)
			}
			r.serve(a2)
			r.await(a2)
		})
	}
}

// All that were good when an outage began stay, though their silence is noticed one by one.
func TestMonitorKeepsAllThatFellSilentTogether(t *testing.T) {
	r := newRig(t)
	r.serve(a1)
	r.serve(a2)
	r.serve(a3)
	r.run().SetEndpoints(addrs(a1, a2, a3))
	r.await(a1, a2, a3)
	for _, at := range []string{a1, a2, a3} {
		r.silence(at)
	}
	r.until("all are dead", func(s Status) bool {
		dead := 0
		for _, e := range s.Endpoints {
			if e.State == apiserver.Dead {
				dead++
			}
		}
		return dead == 3
	})
	r.await(a1, a2, a3)
}

// Hours without any API server, run through in seconds.
func TestMonitorCostsLittleInALongOutage(t *testing.T) {
	r := newRig(t)
	var list []string
	for port := range 20 {
		list = append(list, fmt.Sprintf("192.0.2.11:%d", 7000+port))
	}
	r.kubeletConf("api.example:7000", r.ca)
	z := &zone{down: true}
	r.cfg.Resolver = z
	r.cfg.Interval = time.Millisecond
	r.hook = func(m *Monitor) { m.slowest = 2 * time.Millisecond }
	m := r.run()
	m.SetEndpoints(addrs(list...))
	after := func(probes uint64) (heap uint64, goroutines int) {
		r.until("probes", func(s Status) bool { return s.Counters.Probes >= probes })
		for range 50 {
			m.readFiles()
			m.resolve(t.Context(), true)
			m.SetEndpoints(nil)
		}
		debug.FreeOSMemory()
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		return ms.HeapAlloc, runtime.NumGoroutine()
	}
	h1, g1 := after(2000)
	h2, g2 := after(20_000)
	if h2 > h1+1<<20 {
		t.Errorf("heap has grown from %d to %d kB", h1>>10, h2>>10)
	}
	if g2 > g1+2*len(list) {
		t.Errorf("%d goroutines, then %d", g1, g2)
	}
	if n := strings.Count(r.logs.String(), "\n"); n > 3*len(list) {
		t.Errorf("%d lines for %d endpoints that are dead all the time", n, len(list))
	}
}
