package apihealth

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
	"github.com/firsthop/firsthop/test/standin"
)

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

// A server that is ready every other second must not change the set as often.
func TestMonitorWaitsForAServerThatFlaps(t *testing.T) {
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
