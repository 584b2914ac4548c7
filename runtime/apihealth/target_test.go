package apihealth

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
)

func TestTargetDoesNotFloodTheLog(t *testing.T) {
	r := newRig(t)
	r.cfg.Explicit = endpoints(t, a1)
	m, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.m = m
	tgt := &target{Named: apiserver.Named{Endpoint: endpoints(t, a1)[0]}}
	for i := range 1000 {
		state := apiserver.Live
		if i%2 == 1 {
			state = apiserver.Dead
		}
		m.report(tgt, probe.Result{Endpoint: tgt.Endpoint, State: state})
	}
	if n := strings.Count(r.logs.String(), "\n"); n != logBurst {
		t.Errorf("%d lines for 1000 changes of state", n)
	}
	tgt.log.write(tgt.since.Add(logInterval), r.cfg.Log.Info, "later")
	if want := fmt.Sprintf("msg=later suppressed=%d", 1000-logBurst); !strings.Contains(r.logs.String(), want) {
		t.Errorf("the log lacks %q", want)
	}
}

// A server that is ready every other second must not change the set as often.
func TestTargetThatFlapsWaits(t *testing.T) {
	r := newRig(t)
	r.cfg.Explicit = endpoints(t, a1+","+a2)
	m, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.m = m
	flapping, steady := &target{Named: apiserver.Named{Endpoint: endpoints(t, a1)[0]}}, &target{Named: apiserver.Named{Endpoint: endpoints(t, a2)[0]}, state: apiserver.Live}
	m.targets[netip.MustParseAddrPort(a1)], m.targets[netip.MustParseAddrPort(a2)] = flapping, steady
	good := func() { m.report(flapping, probe.Result{State: apiserver.Live}) }
	bad := func() {
		m.report(flapping, probe.Result{State: apiserver.NotReady, Kind: apiserver.KindHTTP, Status: 500, Answers: true})
	}
	for range freeFalls {
		good()
		if flapping.state != apiserver.Live {
			t.Fatal("out for falling a few times")
		}
		bad()
	}
	good()
	bad()
	good()
	if flapping.state == apiserver.Live || !flapping.answering() || !strings.Contains(flapping.err.Error(), "good answers in a row") {
		t.Errorf("%v (%v) after one good answer of a server that flaps", flapping.state, flapping.err)
	}
	good()
	if flapping.state != apiserver.Live {
		t.Errorf("%v after two good answers", flapping.state)
	}
	for range 20 {
		bad()
		good()
	}
	if flapping.state == apiserver.Live {
		t.Error("live, while it flaps on")
	}
	for range 100 { // for a quarter of an hour, say
		for range maxStreak {
			good()
		}
		bad()
	}
	for range maxStreak - 1 {
		good()
	}
	if flapping.state == apiserver.Live {
		t.Errorf("live too soon after %d falls", flapping.falls)
	}
	steady.state = apiserver.Dead
	good()
	if flapping.state != apiserver.Live {
		t.Error("not live, though no other is")
	}
}

func TestTargetHasOneConnection(t *testing.T) {
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
func TestTargetPausesAfterLostConnections(t *testing.T) {
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
