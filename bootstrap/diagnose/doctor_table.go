package diagnose

import (
	"fmt"
	"slices"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

// inspectTable goes through a table from its frontends to its backends: broken
// are entries that lead where nothing is, so that connections fail; loose are
// those that nothing leads to.
func inspectTable(s *nat.State) (broken, loose []string) {
	used := map[uint32]bool{} // indexes that have a frontend
	vips := map[bpf.Address]bool{}
	limited := map[uint32]bool{}
	sticky := map[uint32]bool{}
	for k, fe := range s.Frontends {
		if k.Proto == 0 {
			continue
		}
		vips[k.Addr] = true
		used[fe.Index] = true
		limited[fe.Index] = limited[fe.Index] || fe.Flags&(bpf.FrontendSourceRange|bpf.FrontendExternalRange) != 0
		sticky[fe.Index] = sticky[fe.Index] || fe.Flags&bpf.FrontendSticky != 0
		if fe.Index == 0 || fe.Index >= s.Services {
			broken = append(broken, fmt.Sprintf("frontend %s has index %d, of %d", k, fe.Index, s.Services))
		}
	}
	for k, fe := range s.Frontends {
		switch {
		case k.Nodes != 0 && k.Proto == 0: // an address of another node, which need not have node ports
			if fe.Flags != bpf.FrontendNode {
				broken = append(broken, fmt.Sprintf("%s is not marked as another node's", k))
			}
		case k.Proto != 0:
		case fe.Flags&bpf.FrontendVIP == 0:
			broken = append(broken, fmt.Sprintf("%s is a whole address, but not marked as one", k))
		case !vips[k.Addr]:
			loose = append(loose, fmt.Sprintf("%s is marked, but has no frontend: its ports are refused", k))
		}
	}
	led := map[uint32]bool{} // sets that a service state leads to
	for at, w := range s.ServiceStates {
		index := at / 2
		if w.Count() > 0 {
			led[w.Set()] = true
		}
		if !used[index] {
			loose = append(loose, fmt.Sprintf("the service states of index %d have no frontend", index))
			continue
		}
		broken = append(broken, inspectState(s, index, w, sticky[index])...)
	}
	for id := range s.Sets {
		if !led[id] {
			loose = append(loose, fmt.Sprintf("no service state leads to set %d", id))
		}
	}
	for r := range s.SourceRanges {
		if r.Index != bpf.IndexServiceCIDR && r.Index != bpf.IndexServiceExcept && !limited[r.Index] {
			loose = append(loose, fmt.Sprintf("source range %s of index %d has no frontend", r.Prefix(), r.Index))
		}
	}
	slices.Sort(broken)
	slices.Sort(loose)
	return broken, slices.Compact(loose)
}

// inspectState looks at the set that a service state leads to.
func inspectState(s *nat.State, index uint32, w bpf.ServiceState, sticky bool) (broken []string) {
	set := s.Sets[w.Set()]
	for slot := range w.Count() {
		be, there := set[slot]
		if !there {
			return []string{fmt.Sprintf("index %d has %d backends in set %d, but slot %d is empty", index, w.Count(), w.Set(), slot)}
		}
		if _, member := set[be.ID]; (sticky || w.Affinity()) && !member {
			return []string{fmt.Sprintf("index %d: backend %s of set %d can't be found by its id", index, be.AddrPort(), w.Set())}
		}
	}
	if _, there := set[bpf.SlotAffinity]; w.Affinity() && w.Count() > 0 && !there {
		return []string{fmt.Sprintf("index %d: set %d doesn't say for how long clients keep their backends", index, w.Set())}
	}
	return nil
}
