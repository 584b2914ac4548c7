package apihealth

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
)

func TestChoose(t *testing.T) {
	const (
		live, sick, dead, fresh = apiserver.Live, apiserver.NotReady, apiserver.Dead, apiserver.Unknown
		x                       = "192.0.2.99:1"
	)
	first := func(at string, s apiserver.State) candidate {
		return candidate{addr: addrs(at)[0], first: true, state: s}
	}
	second := func(at string, s apiserver.State) candidate { return candidate{addr: addrs(at)[0], state: s} }
	there := func(c candidate) candidate { c.answers = true; return c }
	silent := func(c candidate) candidate { c.recent = true; return c }
	good := choice{addrs: addrs(x), proven: true, live: true}
	guess := choice{addrs: addrs(x)}
	for _, tc := range []struct {
		name   string
		former choice
		in     []candidate
		want   string
		live   bool
	}{
		{"live ones are used, in order", good, []candidate{first(a2, live), first(a1, live)}, a1 + " " + a2, true},
		{"dead ones are out", good, []candidate{first(a1, live), first(a2, dead), first(a3, sick)}, a1, true},
		{"new ones wait for their first answer", good, []candidate{first(a1, live), first(a2, fresh)}, a1, true},
		{"the second tier waits behind the first", good, []candidate{second(a1, live), first(a2, live)}, a2, true},
		{"and is used when the first is dead", good, []candidate{second(a1, live), first(a2, dead)}, a1, true},
		{"nothing lives: the former stay", good, []candidate{first(a1, dead), first(a2, sick), second(a3, fresh)}, x, false},
		{"nothing lives and all were asked: the former stay", good, []candidate{first(a1, dead), first(a2, sick), second(a3, sick)}, x, false},
		{"nothing lives, but one answers: it is better than a dead one", good, []candidate{there(first(a1, sick)), first(a2, dead), first(a3, sick)}, a1, false},
		{"a ready one of the second tier is better", good, []candidate{there(first(a1, sick)), second(a2, live)}, a2, true},
		{"one of the second tier that answers is better than a dead one", good, []candidate{first(a1, dead), there(second(a2, sick))}, a2, false},
		{"nothing answers any more: the former stay", choice{addrs: addrs(x), proven: true, answers: true}, []candidate{first(a1, dead), first(a2, dead)}, x, false},
		{"with those that fell silent together with them", choice{addrs: addrs(a2), proven: true, live: true}, []candidate{silent(first(a1, dead)), first(a2, dead), first(a3, dead)}, a1 + " " + a2, false},
		{"nothing is known: the former stay", good, nil, x, false},
		{"nothing lives and there are no former: who answers at all", choice{}, []candidate{first(a1, dead), first(a2, sick), second(a3, sick)}, a2, false},
		{"or any", choice{}, []candidate{first(a1, dead), second(a2, dead)}, a1, false},
		{"or any of the second tier", choice{}, []candidate{second(a2, dead)}, a2, false},
		{"no guess before all were asked", choice{}, []candidate{first(a1, dead), first(a2, fresh)}, "", false},
		{"a guess stays until all were asked", guess, []candidate{first(a1, dead), first(a2, fresh)}, x, false},
		{"a guess gives way to a better one", guess, []candidate{first(a1, dead)}, a1, false},
		{"a guess is better than nothing", guess, nil, x, false},
		{"an address that is named twice counts once", good, []candidate{first(a1, live), first(a1, live)}, a1, true},
	} {
		got := choose(tc.former, tc.in)
		if text(got.addrs) != tc.want || got.live != tc.live {
			t.Errorf("%s: got %s, live %v", tc.name, text(got.addrs), got.live)
		}
	}
}

// Rule 1 through many random turns of fate.
func TestChooseNeverEmptiesWhatWasThere(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	list := addrs(a1, a2, a3)
	var c choice
	for range 200_000 {
		var in []candidate
		for _, a := range list {
			if rnd.IntN(2) == 0 {
				in = append(in, candidate{addr: a, first: rnd.IntN(2) == 0, state: apiserver.State(rnd.IntN(4)), answers: rnd.IntN(4) == 0, recent: rnd.IntN(4) == 0})
			}
		}
		next := choose(c, in)
		if len(c.addrs) > 0 && len(next.addrs) == 0 {
			t.Fatalf("from %v with %v to nothing", c, in)
		}
		for _, a := range next.addrs {
			i := slices.IndexFunc(in, func(e candidate) bool { return e.addr == a })
			if next.live && in[i].state != apiserver.Live {
				t.Fatalf("%v is not live in %v", a, in)
			}
		}
		c = next
	}
}

func TestTheLogIsNotFlooded(t *testing.T) {
	r := newRig(t)
	r.cfg.Explicit = endpoints(t, a1)
	m, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.m = m
	tgt := &target{endpoint: endpoints(t, a1)[0]}
	for i := range 1000 {
		state := apiserver.Live
		if i%2 == 1 {
			state = apiserver.Dead
		}
		m.report(tgt, probe.Result{Endpoint: tgt.endpoint, State: state})
	}
	if n := strings.Count(r.logs.String(), "\n"); n != sayAtOnce {
		t.Errorf("%d lines for 1000 changes of state", n)
	}
	now := tgt.since.Add(sayEvery)
	if ok, unsaid := tgt.says.allow(now); !ok || unsaid != 1000-sayAtOnce {
		t.Errorf("later: %v, %d unsaid", ok, unsaid)
	}
}
