package apiserver

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/apitest"
)

func addrs(list ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range list {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func text(list []netip.AddrPort) string { return strings.Join(apitest.Strings(list), " ") }

func TestChoose(t *testing.T) {
	const (
		live, sick, dead, fresh = Live, NotReady, Dead, Unknown
		a1, a2, a3              = "192.0.2.11:6443", "192.0.2.12:6443", "192.0.2.13:6443"
		x                       = "192.0.2.99:1"
	)
	first := func(at string, s State) Candidate {
		return Candidate{Addr: addrs(at)[0], Preferred: true, State: s}
	}
	second := func(at string, s State) Candidate { return Candidate{Addr: addrs(at)[0], State: s} }
	there := func(c Candidate) Candidate { c.Answers = true; return c }
	other := func(c Candidate) Candidate { c.Foreign = true; return c }
	given := func(c Candidate) Candidate { c.Given = true; return c }
	silent := func(c Candidate) Candidate { c.Recent = true; return c }
	good := Choice{Addrs: addrs(x), Proven: true, Rank: RankLive}
	guess := Choice{Addrs: addrs(x), Rank: RankDead}
	for _, tc := range []struct {
		name   string
		former Choice
		in     []Candidate
		want   string
		live   bool
	}{
		{"live ones are used, in order", good, []Candidate{first(a2, live), first(a1, live)}, a1 + " " + a2, true},
		{"dead ones are out", good, []Candidate{first(a1, live), first(a2, dead), first(a3, sick)}, a1, true},
		{"new ones wait for their first answer", good, []Candidate{first(a1, live), first(a2, fresh)}, a1, true},
		{"the second tier waits behind the first", good, []Candidate{second(a1, live), first(a2, live)}, a2, true},
		{"and is used when the first is dead", good, []Candidate{second(a1, live), first(a2, dead)}, a1, true},
		{"nothing lives: the former stay", good, []Candidate{first(a1, dead), first(a2, sick), second(a3, fresh)}, x, false},
		{"nothing lives and all were asked: the former stay", good, []Candidate{first(a1, dead), first(a2, sick), second(a3, sick)}, x, false},
		{"nothing lives, but one answers: it is better than a dead one", good, []Candidate{there(first(a1, sick)), first(a2, dead), first(a3, sick)}, a1, false},
		{"a ready one of the second tier is better", good, []Candidate{there(first(a1, sick)), second(a2, live)}, a2, true},
		{"one of the second tier that answers is better than a dead one", good, []Candidate{first(a1, dead), there(second(a2, sick))}, a2, false},
		{"nothing answers any more: the former stay", Choice{Addrs: addrs(x), Proven: true, Rank: RankAnswering}, []Candidate{first(a1, dead), first(a2, dead)}, x, false},
		{"with those that fell silent together with them", Choice{Addrs: addrs(a2), Proven: true, Rank: RankLive}, []Candidate{silent(first(a1, dead)), first(a2, dead), first(a3, dead)}, a1 + " " + a2, false},
		{"nothing is known: the former stay", good, nil, x, false},
		{"nothing lives and there are no former: who answers at all", Choice{}, []Candidate{first(a1, dead), first(a2, sick), second(a3, sick)}, a2, false},
		{"or any", Choice{}, []Candidate{first(a1, dead), second(a2, dead)}, a1, false},
		{"or any of the second tier", Choice{}, []Candidate{second(a2, dead)}, a2, false},
		{"no guess before all were asked", Choice{}, []Candidate{first(a1, dead), first(a2, fresh)}, "", false},
		{"a guess stays until all were asked", guess, []Candidate{first(a1, dead), first(a2, fresh)}, x, false},
		{"a guess gives way to a better one", guess, []Candidate{first(a1, dead)}, a1, false},
		{"a guess is better than nothing", guess, nil, x, false},
		{"another cluster's server is no guess", Choice{}, []Candidate{other(first(a1, dead)), second(a2, dead)}, a2, false},
		{"not even alone", Choice{}, []Candidate{other(first(a1, dead))}, "", false},
		{"unless it was given", Choice{}, []Candidate{given(other(first(a1, dead)))}, a1, false},
		{"and no former one, while another may come back", Choice{Addrs: addrs(a1, a2), Proven: true, Rank: RankLive}, []Candidate{other(first(a1, dead)), first(a2, dead)}, a2, false},
		{"an address that is named twice counts once", good, []Candidate{first(a1, live), first(a1, live)}, a1, true},
	} {
		got := Choose(tc.former, tc.in)
		if text(got.Addrs) != tc.want || got.Live() != tc.live {
			t.Errorf("%s: got %s, live %v", tc.name, text(got.Addrs), got.Live())
		}
	}
}

// Rule 1 through many random turns of fate.
func TestChooseNeverEmptiesWhatWasThere(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	list := addrs("192.0.2.11:6443", "192.0.2.12:6443", "192.0.2.13:6443")
	var c Choice
	for range 200_000 {
		var in []Candidate
		for _, a := range list {
			if rnd.IntN(2) == 0 {
				in = append(in, Candidate{Addr: a, Preferred: rnd.IntN(2) == 0, State: State(rnd.IntN(4)), Answers: rnd.IntN(4) == 0, Recent: rnd.IntN(4) == 0})
			}
		}
		next := Choose(c, in)
		if len(c.Addrs) > 0 && len(next.Addrs) == 0 {
			t.Fatalf("from %v with %v to nothing", c, in)
		}
		for _, a := range next.Addrs {
			i := slices.IndexFunc(in, func(e Candidate) bool { return e.Addr == a })
			if next.Live() && in[i].State != Live {
				t.Fatalf("%v is not live in %v", a, in)
			}
		}
		c = next
	}
}
