package nat

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/bpf"
)

// The part of the planner that is about backend sets.

func (p *Planner) setBackends(index uint32, backends []netip.AddrPort, sticky bool) error {
	at := bpf.WordAt(index, false)
	old := p.state.Words[at]
	next := distinct(backends)
	if p.same(old, next, sticky) {
		return nil
	}
	to := bpf.Word(0)
	if len(next) > 0 {
		id, err := p.newSetID()
		if err != nil {
			return err
		}
		set := makeSet(id, next, sticky, p.state.Sets[old.Set()])
		p.plan.NewSets = append(p.plan.NewSets, set)
		p.state.Sets[id] = set.Backends
		to = bpf.WordOf(id, uint32(len(next)))
	}
	p.plan.Words = append(p.plan.Words, WordChange{At: at, From: old, To: to})
	if to == 0 {
		delete(p.state.Words, at)
	} else {
		p.state.Words[at] = to
	}
	if other := p.state.Words[at^1]; old.Count() > 0 && other.Set() != old.Set() { // both kinds of traffic may use one set
		p.retire(old.Set())
	}
	return nil
}

// same reports whether the set behind w holds exactly these backends, whole
// and with the member entries that are wanted.
func (p *Planner) same(w bpf.Word, want []netip.AddrPort, sticky bool) bool {
	if int(w.Count()) != len(want) {
		return false
	}
	set := p.state.Sets[w.Set()]
	entries := len(want)
	if sticky {
		entries *= 2
	}
	have := p.state.Backends(w)
	if len(set) != entries || len(have) != len(want) {
		return false
	}
	for _, b := range want {
		if !slices.Contains(have, b) {
			return false
		}
	}
	return true
}

func (p *Planner) retire(id uint32) {
	p.plan.OldSets = append(p.plan.OldSets, Set{ID: id, Backends: p.state.Sets[id]})
	delete(p.state.Sets, id)
}

// newSetID never gives out an id again before all others were: a program that
// was held up for long can't find strangers in a set.
func (p *Planner) newSetID() (uint32, error) {
	for range uint64(1) << 32 {
		p.state.Generation++
		id := uint32(p.state.Generation)
		if _, taken := p.state.Sets[id]; id == 0 || taken || p.retiring(id) {
			continue
		}
		p.plan.Generation = p.state.Generation
		return id, nil
	}
	return 0, errors.New("no free set id")
}

func (p *Planner) retiring(id uint32) bool {
	return slices.ContainsFunc(p.plan.OldSets, func(s Set) bool { return s.ID == id })
}

func makeSet(id uint32, backends []netip.AddrPort, sticky bool, former map[uint32]bpf.Backend) Set {
	s := Set{ID: id, Backends: map[uint32]bpf.Backend{}}
	ids := memberIDs(backends, former)
	for slot, b := range backends {
		be := bpf.Backend{Addr: bpf.AddressOf(b.Addr()), Port: bpf.PortOf(b.Port()), ID: ids[slot]}
		s.Backends[uint32(slot)] = be
		if sticky {
			s.Backends[be.ID] = be
		}
	}
	return s
}

// memberIDs are what sockets remember the backends by. One that was in the
// former set keeps its id; a new one gets a hash of its address, moved on while
// that is taken.
func memberIDs(backends []netip.AddrPort, former map[uint32]bpf.Backend) []uint32 {
	before := map[netip.AddrPort]uint32{}
	for _, be := range former {
		before[be.AddrPort()] = be.ID
	}
	ids := make([]uint32, len(backends))
	taken := map[uint32]bool{}
	for i, b := range backends {
		ids[i] = before[b]
		taken[ids[i]] = true
	}
	for i, b := range backends {
		if ids[i] != 0 {
			continue
		}
		h := fnv.New32a()
		fmt.Fprint(h, b)
		id := h.Sum32() | bpf.BackendMember
		for taken[id] {
			id = (id + 1) | bpf.BackendMember
		}
		ids[i] = id
		taken[id] = true
	}
	return ids
}

func distinct(in []netip.AddrPort) []netip.AddrPort {
	var out []netip.AddrPort
	seen := map[netip.AddrPort]bool{}
	for _, b := range in {
		b = netip.AddrPortFrom(b.Addr().Unmap(), b.Port())
		if !seen[b] {
			seen[b] = true
			out = append(out, b)
		}
	}
	return out
}
