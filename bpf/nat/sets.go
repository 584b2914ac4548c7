package nat

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/firsthop/firsthop/bpf"
)

// The part of the planner that is about backend sets, and the states that point to them.

// target is where a state is to lead.
type target struct {
	local    bool
	backends []netip.AddrPort // distinct
	none     bpf.ServiceState // the state if there are no backends
	shared   bool             // uses the set of the state for cluster traffic
	same     bool             // does so already
}

// targets are what the states of a service at an index (0: a new one) are to lead to: cluster traffic first.
func (p *Planner) targets(index uint32, svc Service) [2]target {
	cluster := target{backends: distinct(svc.Backends)}
	cluster.same = p.same(p.serviceState(index, false), cluster.backends, 0, svc)
	if !svc.hasLocal() {
		old := p.serviceState(index, true)
		return [2]target{cluster, {local: true, same: old == 0}}
	}
	local := target{local: true, backends: distinct(svc.Local)}
	if len(local.backends) == 0 && len(cluster.backends) > 0 {
		local.none = bpf.ServiceStateOf(bpf.SetDrop, 0)
	}
	local.shared = len(local.backends) > 0 && sameBackends(local.backends, cluster.backends)
	if local.shared {
		local.same = cluster.same && p.serviceState(index, true) == p.serviceState(index, false)
	} else {
		local.same = p.same(p.serviceState(index, true), local.backends, local.none, svc)
	}
	return [2]target{cluster, local}
}

func (p *Planner) serviceState(index uint32, local bool) bpf.ServiceState {
	if index == 0 {
		return 0
	}
	return p.state.ServiceStates[bpf.ServiceStateAt(index, local)]
}

// entries is how many backend entries a set takes.
func entries(backends int, svc Service) int {
	if backends == 0 {
		return 0
	}
	n := backends
	if svc.hasMembers() {
		n *= 2
	}
	if svc.Affinity > 0 {
		n++
	}
	return n
}

func (p *Planner) setBackends(index uint32, svc Service, targets [2]target) error {
	for _, t := range targets {
		at := bpf.ServiceStateAt(index, t.local)
		switch {
		case t.same:
		case t.shared:
			p.putState(at, p.state.ServiceStates[bpf.ServiceStateAt(index, false)])
		case len(t.backends) == 0:
			p.putState(at, t.none)
		default:
			if err := p.setState(at, t.backends, svc); err != nil {
				return err
			}
		}
	}
	return nil
}

// setState plans a new set and that a state leads to it, unless it is so.
func (p *Planner) setState(at uint32, backends []netip.AddrPort, svc Service) error {
	old := p.state.ServiceStates[at]
	next := distinct(backends)
	if p.same(old, next, 0, svc) {
		return nil
	}
	id, err := p.newSetID(svc)
	if err != nil {
		return err
	}
	set := makeSet(id, next, svc, p.state.Sets[old.Set()])
	p.dirty.newSets[id] = set.Backends
	p.state.Sets[id] = set.Backends
	p.capacity.backends -= len(set.Backends)
	p.putState(at, bpf.ServiceStateOf(id, uint32(len(next))))
	return nil
}

// putState plans that a state changes, and that the set which it led to goes if nothing else leads there.
func (p *Planner) putState(at uint32, to bpf.ServiceState) {
	old := p.state.ServiceStates[at]
	p.markState(at)
	if to == 0 {
		delete(p.state.ServiceStates, at)
	} else {
		p.state.ServiceStates[at] = to
	}
	if other := p.state.ServiceStates[at^1]; old.Count() > 0 && other.Set() != old.Set() { // both kinds of traffic may use one set
		p.removeSet(old.Set())
	}
}

// same reports whether w leads to exactly these backends, whole and with what else the set is to have.
//
// A set that differs by the flags alone is written anew, one of a former version or of init included: these say of no
// backend that it is on this node, so that packets for those that are would take the longer way for as long as their
// Service doesn't change. It costs one set for each Service with backends on this node, once, and clients see nothing
// of it, as backends keep their ids.
func (p *Planner) same(w bpf.ServiceState, want []netip.AddrPort, none bpf.ServiceState, svc Service) bool {
	if len(want) == 0 {
		return w == none
	}
	if int(w.Count()) != len(want) || w.Affinity() != (svc.Affinity > 0) {
		return false
	}
	set := p.state.Sets[w.Set()]
	if len(set) != entries(len(want), svc) || p.state.AffinityOf(w) != svc.Affinity {
		return false
	}
	return sameBackends(p.state.Backends(w), want) && sameFlags(set, svc)
}

// sameFlags reports whether a set's backends have the flags that they shall have. Flags of a later version say nothing here.
func sameFlags(set map[uint32]bpf.Backend, svc Service) bool {
	flags := svc.backendFlags()
	for slot, be := range set {
		if slot != bpf.SlotAffinity && be.Flags&bpf.BackendLocal != flags(be.AddrPort()) {
			return false
		}
	}
	return true
}

// sameBackends compares two lists without duplicates; their order has no meaning.
func sameBackends(a, b []netip.AddrPort) bool {
	if len(a) != len(b) {
		return false
	}
	if slices.Equal(a, b) {
		return true
	}
	have := setOf(a)
	return !slices.ContainsFunc(b, func(x netip.AddrPort) bool { return !have[x] })
}

func (p *Planner) removeSet(id uint32) {
	if set, fresh := p.dirty.newSets[id]; fresh {
		delete(p.dirty.newSets, id)
		p.capacity.backends += len(set)
	} else {
		p.dirty.oldSets[id] = p.state.Sets[id]
	}
	delete(p.state.Sets, id)
}

// setIDs is how many set ids there are; the bits above say what a set is like.
const setIDs = 1 << 30

// newSetID never gives out an id again before all others were: a program that
// was held up for long can't find another's backends in a set.
func (p *Planner) newSetID(svc Service) (uint32, error) {
	kind := uint32(0)
	if svc.Affinity > 0 {
		kind = bpf.SetAffinity
	}
	for range uint64(setIDs) {
		p.state.Generation++
		n := uint32(p.state.Generation % setIDs)
		if n == 0 || p.taken(n) || p.taken(n|bpf.SetAffinity) {
			continue
		}
		return n | kind, nil
	}
	return 0, errors.New("no free set id")
}

func (p *Planner) taken(id uint32) bool {
	_, there := p.state.Sets[id]
	_, going := p.dirty.oldSets[id]
	return there || going
}

func makeSet(id uint32, backends []netip.AddrPort, svc Service, former map[uint32]bpf.Backend) Set {
	s := Set{ID: id, Backends: make(map[uint32]bpf.Backend, entries(len(backends), svc))}
	ids, flags := memberIDs(backends, former), svc.backendFlags()
	for slot, b := range backends {
		be := bpf.Backend{Addr: bpf.AddressOf(b.Addr()), Port: bpf.PortOf(b.Port()), Flags: flags(b), ID: ids[slot]}
		s.Backends[uint32(slot)] = be
		if svc.hasMembers() {
			s.Backends[be.ID] = be
		}
	}
	if svc.Affinity > 0 {
		s.Backends[bpf.SlotAffinity] = bpf.Backend{ID: uint32(svc.Affinity / time.Second)}
	}
	return s
}

// memberIDs are what sockets and clients remember the backends by. One that was
// in the former set keeps its id; a new one gets a hash of its address, moved on
// while that is taken.
func memberIDs(backends []netip.AddrPort, former map[uint32]bpf.Backend) []uint32 {
	var before map[netip.AddrPort]uint32
	if len(former) > 0 {
		before = make(map[netip.AddrPort]uint32, len(former))
	}
	for slot, be := range former {
		if slot != bpf.SlotAffinity {
			before[be.AddrPort()] = be.ID
		}
	}
	ids := make([]uint32, len(backends))
	var many map[uint32]bool
	if len(backends) > few {
		many = make(map[uint32]bool, len(backends))
	}
	taken := func(id uint32) bool { return many[id] || many == nil && slices.Contains(ids, id) }
	for i, b := range backends {
		ids[i] = before[b]
		if many != nil {
			many[ids[i]] = true
		}
	}
	for i, b := range backends {
		if ids[i] != 0 {
			continue
		}
		id := hash(b) | bpf.BackendMember
		for taken(id) {
			id = (id + 1) | bpf.BackendMember
		}
		ids[i] = id
		if many != nil {
			many[id] = true
		}
	}
	return ids
}

// hash is FNV-1a of the address as text. It must stay what it is: ids outlive the program.
func hash(b netip.AddrPort) uint32 {
	var text [64]byte
	h := uint32(2166136261)
	for _, c := range b.AppendTo(text[:0]) {
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}

// few is up to how many elements a list is searched faster than a map is made.
const few = 16

func distinct(in []netip.AddrPort) []netip.AddrPort {
	return distinctOf(in, func(b netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(b.Addr().Unmap(), b.Port()) })
}

// distinctOf is the elements of a list in their normal form, each once.
func distinctOf[T comparable](in []T, normal func(T) T) []T {
	out := make([]T, 0, len(in))
	var seen map[T]bool
	if len(in) > few {
		seen = make(map[T]bool, len(in))
	}
	for _, x := range in {
		x = normal(x)
		if seen == nil && slices.Contains(out, x) || seen[x] {
			continue
		}
		if seen != nil {
			seen[x] = true
		}
		out = append(out, x)
	}
	return out
}
