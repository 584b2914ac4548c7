package nat

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/bpf"
)

// The part of the planner that is about frontends, and the marks of VIPs.

// surplus are the frontends that an index has and svc has not, sorted.
func (p *Planner) surplus(index uint32, svc Service) []bpf.FrontendKey {
	if p.hasExactly(index, svc.Frontends) {
		return nil
	}
	wanted := setOf(svc.Frontends)
	return slices.DeleteFunc(p.frontendsOf(index), func(k bpf.FrontendKey) bool { return wanted[k] })
}

func (p *Planner) hasExactly(index uint32, keys []bpf.FrontendKey) bool {
	have := p.keys[index]
	return len(have) == len(keys) && !slices.ContainsFunc(keys, func(k bpf.FrontendKey) bool { return !have[k] })
}

func (p *Planner) putFrontend(k bpf.FrontendKey, fe bpf.Frontend) {
	old, ok := p.state.Frontends[k]
	if ok && old == fe {
		return
	}
	p.markFrontend(k)
	if ok {
		p.index(k, old, -1)
	} else if p.dirty.frontends[k] == nil {
		p.capacity.frontends--
	}
	p.state.Frontends[k] = fe
	p.index(k, fe, +1)
}

// mark plans the marks of a Service's VIPs, and takes those away that its
// addresses have but should not, unless another writer has Services there.
func (p *Planner) mark(svc Service) {
	for _, k := range svc.Frontends {
		a := k.Addr.Addr()
		p.setMark(bpf.VIPKeyOf(a), bpf.FrontendVIP, slices.Contains(svc.VIPs, a))
		p.setMark(bpf.ExternalVIPKeyOf(a), bpf.FrontendVIP|bpf.FrontendExternal, slices.Contains(svc.ExternalVIPs, a))
	}
}

func (p *Planner) setMark(mark bpf.FrontendKey, flags bpf.FrontendFlags, wanted bool) {
	_, marked := p.state.Frontends[mark]
	switch {
	case wanted:
		p.putFrontend(mark, bpf.Frontend{Flags: flags})
	case marked && p.foreign[mark.Addr] == 0:
		p.deleteFrontend(mark)
	}
}

// frontendsOf is State.FrontendsOf, without a look at the whole table.
func (p *Planner) frontendsOf(index uint32) []bpf.FrontendKey {
	keys := slices.Collect(maps.Keys(p.keys[index]))
	sortKeys(keys)
	return keys
}

// RemoveFrontends plans that frontends of the writer's own go, and the marks of
// addresses that have no others. Their services stay.
func (p *Planner) RemoveFrontends(keys []bpf.FrontendKey) {
	going := map[bpf.Address]int{}
	for _, k := range keys {
		if _, there := p.state.Frontends[k]; there {
			going[k.Addr]++
		}
	}
	for _, k := range keys {
		if p.shared[k.Addr] == going[k.Addr] {
			p.deleteFrontend(bpf.VIPKeyOf(k.Addr.Addr()))
			p.deleteFrontend(bpf.ExternalVIPKeyOf(k.Addr.Addr()))
		}
	}
	for _, k := range keys {
		p.deleteFrontend(k)
	}
}

func (p *Planner) deleteFrontend(k bpf.FrontendKey) {
	if fe, ok := p.state.Frontends[k]; ok {
		p.markFrontend(k)
		delete(p.state.Frontends, k)
		p.index(k, fe, -1)
		if p.dirty.frontends[k] == nil { // came with this plan; others keep their room until they are gone
			p.capacity.frontends++
		}
	}
}

// Missing reports whether a frontend of a Service, or the mark of a VIP, isn't in the table.
func (p *Planner) Missing(svc Service) bool {
	absent := func(k bpf.FrontendKey) bool { _, there := p.state.Frontends[k]; return !there }
	return slices.ContainsFunc(svc.Frontends, absent) ||
		slices.ContainsFunc(svc.VIPs, func(v netip.Addr) bool { return absent(bpf.VIPKeyOf(v)) }) ||
		slices.ContainsFunc(svc.ExternalVIPs, func(v netip.Addr) bool { return absent(bpf.ExternalVIPKeyOf(v)) })
}

// UpToDate reports whether an index has exactly the frontends of a Service, so
// that Assign would let none come, go or get another index.
func (p *Planner) UpToDate(index uint32, svc Service) bool {
	return !p.Missing(svc) && p.hasExactly(index, svc.Frontends)
}
