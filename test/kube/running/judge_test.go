package running

import (
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/kube/running/probe"
)

// The judge of the storm must be able to say no.
func TestJudge(t *testing.T) {
	at := func(s float64) int64 { return int64(s * float64(time.Second)) }
	one, two := map[string]bool{"a:1": true}, map[string]bool{"b:1": true, "c:1": true}
	// One backend; at 10 s two others; at 20 s none; at 30 s none here, and at 40 s the first again.
	facts := []fact{
		{begin: at(0), end: at(0.1), usable: one, otherwise: refused},
		{begin: at(10), end: at(10.1), seen: at(10.2), usable: two, otherwise: refused},
		{begin: at(20), end: at(20.1), otherwise: refused},
		{begin: at(30), end: at(30.1), otherwise: dropped},
		{begin: at(40), end: at(40.1), usable: one, otherwise: refused},
	}
	never, away := &outages{}, &outages{list: []outage{{killed, at(10.3), at(13.3)}}}
	for _, tc := range []struct {
		name   string
		begin  float64
		server string
		err    string
		out    *outages
		wrong  bool
	}{
		{"the backend that there is", 5, "a:1", "", never, false},
		{"one that comes later", 5, "b:1", "", never, true},
		{"a refusal while there is one", 5, "", "connect ECONNREFUSED", never, true},
		{"one that has just gone", 11.1, "a:1", "", never, false},
		{"one that went more than a second ago", 11.3, "a:1", "", never, true},
		{"one that went while the runtime was away", 14, "a:1", "", away, false},
		{"one that went long before the runtime was away", 14.4, "a:1", "", away, true},
		{"one of the new ones at once", 10.01, "c:1", "", never, false},
		{"a refusal between one set and the next", 10.5, "", "connect ECONNREFUSED", never, true},
		{"a refusal when all are gone", 25, "", "connect ECONNREFUSED", never, false},
		{"a drop when all are gone", 25, "", "connect EHOSTUNREACH", never, true},
		{"a drop when none is here", 35, "", "connect EHOSTUNREACH", never, false},
		{"a drop when one has just come", 40.5, "", "connect EHOSTUNREACH", never, false},
		{"a drop when one came more than a second ago", 41.5, "", "connect EHOSTUNREACH", never, true},
		{"another failure", 5, "", "recv ECONNRESET", never, true},
		{"a socket that is ended with its backend", 10.5, "", "recv ECONNABORTED", never, false},
		{"one that finds it when it sends", 10.5, "", "send EDESTADDRREQ", never, false},
		{"one that finds it long after its backend had gone", 15, "", "send EDESTADDRREQ", never, true},
		{"a socket that is ended without reason", 15, "", "recv ECONNABORTED", never, true},
		{"a backend of nobody", 45, "z:1", "", never, true},
	} {
		h := history{facts: facts}
		r := probe.Result{Begin: at(tc.begin), End: at(tc.begin) + int64(time.Millisecond), Server: tc.server, Error: tc.err}
		if got := h.judge(r, tc.out); (got != "") != tc.wrong {
			t.Errorf("%s: %q", tc.name, got)
		}
	}
}

func TestOutagesAreJoined(t *testing.T) {
	o := outages{list: []outage{{stalled, 50, 60}, {killed, 10, 30}, {stalled, 20, 40}, {stalled, 22, 25}}}
	o.join()
	if got := o.served(0, 100); got != 60 {
		t.Errorf("%v of 100 were served, want 60", got)
	}
	if got := o.served(35, 55); got != 10 {
		t.Errorf("%v of 20 were served, want 10", got)
	}
}
