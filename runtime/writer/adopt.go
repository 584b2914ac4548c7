package writer

import (
	"maps"
	"slices"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/services"
)

// adopt starts from what the table holds: a port has the index there that its frontends have.
func (w *Writer) adopt(state *nat.State) {
	w.planner = nat.NewPlanner(state, nat.RuntimeIndexes)
	w.noted = state.Generation
	w.status.Reloads++
	w.ranges.replan()
	w.nodes.replan()
	w.planner.Expect(len(w.ports))
	keys := sorted(slices.Collect(maps.Keys(w.ports)))
	for _, key := range keys {
		w.ports[key].index = 0
		w.queue.dirty[key] = true
	}
	w.queue.order, w.queue.removed = keys, nil
	claimed := w.claim(keys, state)
	for _, index := range state.Indexes() {
		if nat.RuntimeIndexes.Contains(index) && !claimed[index] {
			w.queue.removed = append(w.queue.removed, index)
		}
	}
}

// claim gives ports the indexes that they have in the table. The state of an
// index changes before the frontends that lead there, so a port that took
// another's index would for a moment have the other's clients: a port has an
// index by its cluster IP, which is nobody else's, and by another frontend
// (a node port may have been another Service's until now) only if no other port
// wants any of those that the index has.
func (w *Writer) claim(keys []services.PortKey, state *nat.State) (claimed map[uint32]bool) {
	claimed = make(map[uint32]bool, len(w.ports))
	take := func(p *port, k bpf.FrontendKey, allowed func(index uint32) bool) {
		fe, there := state.Frontends[k]
		if there && p.index == 0 && nat.RuntimeIndexes.Contains(fe.Index) && !claimed[fe.Index] && allowed(fe.Index) {
			p.index, claimed[fe.Index] = fe.Index, true
		}
	}
	var rest []*port
	for _, key := range keys {
		p := w.ports[key]
		for _, k := range p.svc.Frontends {
			take(p, k, func(uint32) bool { return slices.Contains(p.svc.VIPs, k.Addr.Addr()) })
		}
		if p.index == 0 {
			rest = append(rest, p)
		}
	}
	unclaimed := func(index uint32) bool { return nat.RuntimeIndexes.Contains(index) && !claimed[index] }
	if len(rest) == 0 || !slices.ContainsFunc(state.Indexes(), unclaimed) {
		return claimed
	}
	wanted := map[bpf.FrontendKey]*port{}
	for _, p := range w.ports {
		for _, k := range p.svc.Frontends {
			wanted[k] = p
		}
	}
	only := map[uint32]*port{} // by index: the port that wants all that is wanted of its frontends; nil: there are several
	for k, fe := range state.Frontends {
		by := wanted[k]
		if by == nil {
			continue
		}
		if other, seen := only[fe.Index]; seen && other != by {
			by = nil
		}
		only[fe.Index] = by
	}
	for _, p := range rest {
		for _, k := range p.svc.Frontends {
			take(p, k, func(index uint32) bool { return only[index] == p })
		}
	}
	return claimed
}

// sorted sorts keys, those of the API service first: it gets capacity before all others.
func sorted(keys []services.PortKey) []services.PortKey {
	slices.SortFunc(keys, func(a, b services.PortKey) int {
		if isAPI := a.Service == services.APIService; isAPI != (b.Service == services.APIService) {
			if isAPI {
				return -1
			}
			return 1
		}
		return a.Compare(b)
	})
	return keys
}
