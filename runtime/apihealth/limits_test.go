package apihealth

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// Hours without any API server, run through in seconds.
func TestALongOutageCostsNoMemoryAndFewLines(t *testing.T) {
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

func TestWhatIsRememberedIsBounded(t *testing.T) {
	r := newRig(t)
	m, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 * maxFormer {
		e := endpoints(t, fmt.Sprintf("192.0.2.11:%d", 1+i))[0]
		m.remember(&target{Named: apiserver.Named{Endpoint: e}, lastLive: time.Now()})
		m.remember(&target{Named: apiserver.Named{Endpoint: e}, lastLive: time.Now()})
		m.remember(&target{Named: apiserver.Named{Endpoint: endpoints(t, a2)[0]}}) // never lived
	}
	if n := len(m.former); n != maxFormer || m.former[n-1].Addr.Port() != 10*maxFormer {
		t.Errorf("%d are remembered, the last is %+v", n, m.former[n-1])
	}
}

func TestTheSocketsInUseAreBounded(t *testing.T) {
	r := newRig(t)
	var list []string
	for port := range 3 * maxProbing {
		list = append(list, fmt.Sprintf("192.0.2.11:%d", 7000+port))
	}
	var now, most atomic.Int32
	r.cfg.Timeout = 50 * time.Millisecond
	r.cfg.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-ctx.Done()
		now.Add(-1)
		return nil, ctx.Err()
	}
	r.run().SetEndpoints(addrs(list...))
	r.until("all asked", func(s Status) bool {
		for _, e := range s.Endpoints {
			if e.State == apiserver.Unknown {
				return false
			}
		}
		return len(s.Endpoints) == len(list)
	})
	if n := most.Load(); n > maxProbing || n < maxProbing/2 {
		t.Errorf("%d at a time", n)
	}
}

func TestALiveEndpointHasOneConnection(t *testing.T) {
	r := newRig(t)
	s := r.serve(a1)
	r.cfg.Interval = 5 * time.Millisecond
	r.run().SetEndpoints(addrs(a1))
	r.until("many probes", func(s Status) bool { return s.endpoint(a1).Probes > 50 })
	if n := s.Accepted(); n != 1 {
		t.Errorf("%d connections", n)
	}
	e := r.m.Status().endpoint(a1)
	if e.Failures != 0 || e.RTT <= 0 || e.RTT > time.Second || e.LastLive.Before(e.Since) {
		t.Errorf("status says %+v", e)
	}
}

// A server that closes each connection right after its answer must not be asked without a pause.
func TestLostConnectionsAreNoLoop(t *testing.T) {
	lost := make(chan struct{})
	close(lost)
	start := time.Now()
	if !pause(t.Context(), start, time.Second, 50*time.Millisecond, lost) {
		t.Error("ended")
	}
	if d := time.Since(start); d < 50*time.Millisecond || d > 900*time.Millisecond {
		t.Errorf("paused for %v", d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if pause(ctx, time.Now(), time.Hour, time.Hour, nil) {
		t.Error("goes on after the end")
	}
}
