package devices

import (
	"net/netip"
	"slices"
)

// counted calls fn for the routes of tables that count, by devices that there are.
func (c *chooser) counted(fn func(r *Route, table int, d *device)) {
	var table int
	var d *device
	counts := false
	var last Route
	for i := range c.Routes {
		r := &c.Routes[i]
		if i == 0 || r.Table != last.Table || r.Hop != last.Hop { // a hundred thousand routes have a handful of next hops
			table, counts = c.rank[r.Table]
			d = c.byIndex[r.Device]
			last = *r
		}
		if counts && d != nil {
			fn(r, table, d)
		}
	}
}

// judgeRoutes finds out what each device's routes say. It finds the longest prefix to each other node and range of pods
// first, then the devices that have it.
func (c *chooser) judgeRoutes() {
	nodes := c.newReach(c.nodePrefixes())
	pods := c.newReach(c.Peers.Pods)
	type touching struct {
		*Route
		table int
		facts *routeFacts
		ours  bool
	}
	var few []touching // the routes that lead to any of them
	foreign := map[*Hop]bool{}
	c.counted(func(r *Route, table int, d *device) {
		isForeign, known := true, true
		if r.Gateway.IsValid() {
			if isForeign, known = foreign[r.Hop]; !known {
				isForeign = c.isForeign(r.Gateway)
				foreign[r.Hop] = isForeign
			}
		}
		f := &d.routes
		f.isDefault = f.isDefault || r.Destination.Bits() == 0 && isForeign
		f.gateway = f.gateway || r.Gateway.IsValid() && isForeign
		toNode, toPods := nodes.add(table, r.Destination), pods.add(table, r.Destination)
		if toNode || toPods {
			few = append(few, touching{r, table, f, !isForeign})
		}
	})
	for _, r := range few {
		f, to := r.facts, r.Destination
		f.node = f.node || nodes.best(r.table, to) && !(r.ours && to.Bits() == 0)
		if pods.within(to, r.Gateway.IsValid()) || to.Bits() > 0 && pods.best(r.table, to) {
			f.pods = true
			f.podsBy = f.podsBy || r.Gateway.IsValid()
		}
	}
}

// isForeign tells whether a gateway leads off the node. One that is this node itself is how some CNIs lead packets to
// their programs (Cilium has a default route of that kind, for marked packets); a pod of this node leads nowhere else.
func (c *chooser) isForeign(gateway netip.Addr) bool {
	return !c.own[gateway] && !contains(c.Peers.LocalPods, gateway)
}

func (c *chooser) nodePrefixes() (out []netip.Prefix) {
	for _, a := range c.Peers.Nodes {
		if a = a.Unmap(); !c.own[a] {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// reach knows which routes lead to some prefixes.
type reach struct {
	targets []netip.Prefix // sorted
	longest [][]int16      // by rank of the table, then as targets: bits of the longest route that contains it; -1: none does
}

func (c *chooser) newReach(targets []netip.Prefix) reach {
	r := reach{targets: make([]netip.Prefix, 0, len(targets)), longest: make([][]int16, len(c.rank))}
	for _, p := range targets {
		if p.IsValid() {
			r.targets = append(r.targets, p.Masked())
		}
	}
	slices.SortFunc(r.targets, netip.Prefix.Compare)
	r.targets = slices.Compact(r.targets)
	for i := range r.longest {
		r.longest[i] = slices.Repeat([]int16{-1}, len(r.targets))
	}
	return r
}

// from is where the targets at an address and above begin.
func (r *reach) from(a netip.Addr) int {
	i, _ := slices.BinarySearchFunc(r.targets, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	return i
}

// below calls fn for the targets that a prefix contains, until it returns false.
func (r *reach) below(p netip.Prefix, fn func(i int) bool) {
	for i := r.from(p.Addr()); i < len(r.targets) && p.Contains(r.targets[i].Addr()); i++ {
		if r.targets[i].Bits() >= p.Bits() && !fn(i) {
			return
		}
	}
}

// add notes a route, and tells whether it leads to any target or to a part of one.
func (r *reach) add(table int, p netip.Prefix) (touches bool) {
	if len(r.targets) == 0 {
		return false
	}
	r.below(p, func(i int) bool {
		r.longest[table][i] = max(r.longest[table][i], int16(p.Bits()))
		touches = true
		return true
	})
	return touches || r.within(p, true)
}

// best tells whether a route is the most specific one of its table to any target.
func (r *reach) best(table int, p netip.Prefix) (best bool) {
	r.below(p, func(i int) bool {
		best = int(r.longest[table][i]) == p.Bits()
		return !best
	})
	return best
}

// within tells whether a route leads to a part of a target. A route to a single address on the link doesn't count: it is
// this node's pod where pods get their addresses in another way than by the ranges of nodes. Targets don't overlap.
func (r *reach) within(p netip.Prefix, gateway bool) bool {
	if p.IsSingleIP() && !gateway {
		return false
	}
	i := r.from(p.Addr())
	return i > 0 && r.targets[i-1].Bits() <= p.Bits() && r.targets[i-1].Contains(p.Addr()) ||
		i < len(r.targets) && r.targets[i].Bits() <= p.Bits() && r.targets[i].Contains(p.Addr())
}
