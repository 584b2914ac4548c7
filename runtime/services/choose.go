package services

import (
	"net/netip"
	"slices"
)

// cluster are the endpoints that cluster traffic gets from this node: those
// that are ready and that hints leave, or, where none is ready anywhere, those
// that serve while they terminate (KEP-1669), whatever their hints.
func cluster(eps []endpoint) []netip.AddrPort {
	want := ready | hinted(eps)
	if out := pick(eps, func(t traits) bool { return t.has(want) }); len(out) > 0 {
		return out
	}
	return pick(eps, traits.servesItsLast)
}

// locals are the endpoints of local traffic: by the same rule among those on
// this node, but hints don't matter. Never nil.
func locals(eps []endpoint) []netip.AddrPort {
	out := pick(eps, func(t traits) bool { return t.has(ready | local) })
	if len(out) == 0 {
		out = pick(eps, func(t traits) bool { return t.has(local) && t.servesItsLast() })
	}
	if out == nil {
		out = []netip.AddrPort{}
	}
	return out
}

// on are the endpoints on a node, as if it were this one: those that hints leave are all of them.
func on(eps []endpoint, node string) []endpoint {
	var out []endpoint
	for _, ep := range eps {
		if ep.node == node {
			ep.traits |= local
			out = append(out, ep)
		}
	}
	return out
}

// onThisNode are the endpoints on this node that are in one of the lists, which are sorted.
func onThisNode(eps []endpoint, lists ...[]netip.AddrPort) (out []netip.AddrPort) {
	for i := range eps {
		if !eps[i].has(local) {
			continue
		}
		for _, l := range lists {
			if _, in := slices.BinarySearchFunc(l, eps[i].addr, netip.AddrPort.Compare); in {
				out = append(out, eps[i].addr)
				break
			}
		}
	}
	return out
}

// stillServing are the endpoints to which existing flows may continue, wherever they are.
func stillServing(eps []endpoint) []netip.AddrPort {
	return pick(eps, func(t traits) bool { return t.has(serving) })
}

// hinted is which hint endpoints must have: that for this node where every
// ready endpoint has one for some node and one has it for this (KEP-3015), else
// the same of zones (KEP-2433), else none.
func hinted(eps []endpoint) traits {
	all, some := nodeHint|zoneHint, noTraits
	for i := range eps {
		if eps[i].has(ready) {
			all &= eps[i].traits
			some |= eps[i].traits
		}
	}
	switch {
	case all.has(nodeHint) && some.has(ourNode):
		return ourNode
	case all.has(zoneHint) && some.has(ourZone):
		return ourZone
	}
	return noTraits
}

func pick(eps []endpoint, want func(traits) bool) []netip.AddrPort {
	n := 0
	for i := range eps {
		if want(eps[i].traits) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	out := make([]netip.AddrPort, 0, n)
	for i := range eps {
		if want(eps[i].traits) {
			out = append(out, eps[i].addr)
		}
	}
	return out
}

// localReady counts the addresses on this node that are ready behind any port
// of the slices, whether or not the Service has it: a pod with two ports is one.
func (f family) localReady() int {
	seen := map[portName]bool{}
	addrs := map[netip.Addr]bool{}
	for i := range f {
		for j := range f[i].ports {
			p := &f[i].ports[j]
			pr, known := protoOf(p)
			if _, ok := numberOf(p); !ok || !known || seen[portName{*p.Name, pr}] {
				continue
			}
			seen[portName{*p.Name, pr}] = true
			for _, ep := range f.endpoints(*p.Name, pr) {
				if ep.has(ready | local) {
					addrs[ep.addr.Addr()] = true
				}
			}
		}
	}
	return len(addrs)
}
