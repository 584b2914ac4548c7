package apihealth

import (
	"strings"
	"testing"

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
	if n := strings.Count(r.logs.String(), "\n"); n != sayAtOnce {
		t.Errorf("%d lines for 1000 changes of state", n)
	}
	now := tgt.since.Add(sayEvery)
	if ok, unsaid := tgt.says.allow(now); !ok || unsaid != 1000-sayAtOnce {
		t.Errorf("later: %v, %d unsaid", ok, unsaid)
	}
}
