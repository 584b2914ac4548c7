package nat

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/firsthop/firsthop/bpf"
)

// dice are decisions: random, or of a fuzzer's bytes.
type dice struct {
	next func() byte
	left int
}

func (d *dice) upTo(n int) int { d.left--; return int(d.next()) % n }

// history is a table and what it should hold, changed by random steps.
type history struct {
	t     testing.TB
	f     *Fake
	dice  *dice
	wants map[bpf.FrontendKey][]netip.AddrPort // the last backends that were carried out
}

// step changes one or two services and is carried out, fails, is taken back, or is killed.
func (h *history) step() {
	own := InitIndexes
	if h.dice.upTo(3) == 0 {
		own = runtimeIndexes
	}
	p := NewPlanner(mustRead(h.t, h.f), own)
	wants := map[bpf.FrontendKey][]netip.AddrPort{}
	for range 1 + h.dice.upTo(2) {
		h.planOne(p, own, wants)
	}
	before, after := mustRead(h.t, h.f), p.State()
	watch(h.t, h.f, before, after)
	done := false
	switch h.dice.upTo(5) {
	case 0:
		h.f.FailAfter = h.f.Writes + h.dice.upTo(12)
		applied, err := Apply(h.f, p.Plan())
		if done = err == nil; done {
			h.f.FailAfter = 0
			err = applied.Commit()
		}
		h.f.FailAfter = 0
		if !done && !sameTable(before, mustRead(h.t, h.f)) {
			h.t.Errorf("after %v the table isn't as it was", err)
		}
	case 1:
		applied, err := Apply(h.f, p.Plan())
		if err != nil {
			h.t.Fatal(err)
		}
		if err := applied.Rollback(); err != nil || !sameTable(before, mustRead(h.t, h.f)) {
			h.t.Errorf("the table isn't as it was: %v", err)
		}
	case 2:
		killAfter(h.f, 1+h.dice.upTo(12), func() { carryOut(h.t, h.f, p.Plan()) })
		h.learn(wants)
	default:
		carryOut(h.t, h.f, p.Plan())
		done = true
	}
	h.f.Observe = nil
	if done {
		for k, want := range wants {
			h.wants[k] = want
		}
	}
	h.check()
}

// planOne plans a random service of the writer's own, or other backends for another's.
func (h *history) planOne(p *Planner, own Indexes, wants map[bpf.FrontendKey][]netip.AddrPort) {
	n := h.dice.upTo(6)
	k := tcp(fmt.Sprintf("10.96.0.%d:443", n+1))
	if wants[k] != nil {
		return // a plan that changes a service twice shows traffic both
	}
	svc := Service{Name: fmt.Sprint("s", n), Frontends: []bpf.FrontendKey{k}, Sticky: n%2 == 1}
	if n%3 == 0 {
		svc.VIPs = []netip.Addr{k.AddrPort().Addr()}
	}
	if n == 4 || n == 5 {
		h.decorate(&svc, k)
	}
	for range 1 + h.dice.upTo(4) {
		svc.Backends = append(svc.Backends, netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:6443", h.dice.upTo(5)+1)))
	}
	err := p.Ensure(svc)
	if errors.Is(err, ErrOwned) {
		index, _, _ := p.Owner(svc)
		err = p.Replace(index, svc.Backends)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	wants[k] = sorted(distinct(svc.Backends))
}

// decorate adds what a frontend is not needed for: the backends that it leads to are the same.
func (h *history) decorate(svc *Service, k bpf.FrontendKey) {
	svc.Affinity = time.Duration(h.dice.upTo(3)) * time.Minute
	if h.dice.upTo(2) == 0 {
		svc.SourceRanges = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", h.dice.upTo(4))), netip.MustParsePrefix("203.0.113.0/24")}
		svc.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{k: bpf.FrontendSourceRange}
	}
	if svc.Name == "s5" || h.dice.upTo(2) == 0 {
		svc.Local = []netip.AddrPort{netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:6443", h.dice.upTo(5)+1))}[:h.dice.upTo(2)]
	}
	if h.dice.upTo(2) == 0 {
		svc.OnNode = []netip.AddrPort{netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:6443", h.dice.upTo(5)+1))}
	}
	// What they are to clients outside stays: a change of that and of backends shows them one after the other.
	if svc.Flags == nil {
		svc.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{}
	}
	svc.Flags[k] |= bpf.FrontendExternal
	if svc.Name == "s5" {
		svc.Flags[k] |= bpf.FrontendExternalLocal
	}
	svc.ExternalVIPs = []netip.Addr{k.AddrPort().Addr()}[:h.dice.upTo(2)]
}

// learn takes over what a killed writer got done: of each service all or nothing.
func (h *history) learn(wants map[bpf.FrontendKey][]netip.AddrPort) {
	s := mustRead(h.t, h.f)
	for k, want := range wants {
		if backends, _ := s.Resolve(k); slices.Equal(sorted(backends), want) {
			h.wants[k] = want
		}
	}
}

// check asks that every service which was ever carried out is served as it last was.
func (h *history) check() {
	s := mustRead(h.t, h.f)
	for k, want := range h.wants {
		if backends, refused := s.Resolve(k); refused || !slices.Equal(sorted(backends), want) {
			h.t.Errorf("%v goes to %v (refused: %v), want %v", k, backends, refused, want)
		}
	}
}

// settle is a last writer, after which nothing may be left over.
func (h *history) settle() {
	for _, own := range []Indexes{InitIndexes, runtimeIndexes} {
		carryOut(h.t, h.f, NewPlanner(mustRead(h.t, h.f), own).Plan())
	}
	checkWhole(h.t, mustRead(h.t, h.f))
	h.check()
}

func play(t testing.TB, d *dice) {
	h := &history{t: t, f: NewFake(2048), dice: d, wants: map[bpf.FrontendKey][]netip.AddrPort{}}
	if err := h.f.PutGeneration(0); err != nil { // FailAfter can't name the first write of all
		t.Fatal(err)
	}
	for d.left > 0 && !t.Failed() {
		h.step()
	}
	h.settle()
}

func TestPlannerWithRandomHistories(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 2))
		play(t, &dice{next: func() byte { return byte(r.Uint32()) }, left: 400})
		if t.Failed() {
			t.Fatalf("history %d", seed)
		}
	}
}

func FuzzHistory(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07"))
	f.Add([]byte("every byte is a decision; kill, fail, undo, go on"))
	f.Fuzz(func(t *testing.T, data []byte) {
		i := 0
		play(t, &dice{left: min(len(data), 2000), next: func() byte {
			i++
			if i > len(data) {
				return byte(i)
			}
			return data[i-1]
		}})
	})
}
