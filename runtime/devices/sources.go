package devices

import (
	"cmp"
	"net/netip"
	"slices"
)

// maxSources bounds the sources of one uplink. A node has one or two nearly always.
const maxSources = 1024

var (
	all4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	all6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// addSources finds the sources of each uplink. Most have one for each family: these need no list of routes.
func (c *chooser) addSources(uplinks []Uplink) {
	families := make(map[int]*[2]answers, len(uplinks))
	for _, u := range uplinks {
		families[u.Index] = &[2]answers{}
	}
	c.eachAnswer(families, (*answers).survey)
	for _, u := range uplinks {
		f := families[u.Index]
		c.settleWhole(u.Index, all4, &f[0])
		c.settleWhole(u.Index, all6, &f[1])
	}
	c.eachAnswer(families, (*answers).collect)
	important := c.newReach(append(c.nodePrefixes(), c.Peers.Pods...))
	for i := range uplinks {
		u := &uplinks[i]
		f := families[u.Index]
		list := append(f[0].compact(all4), f[1].compact(all6)...)
		u.Omitted = max(0, len(list)-maxSources)
		u.Sources = bound(list, maxSources, &important)
	}
}

// answer is a route with its source address.
type answer struct {
	Source
	table  int // its rank
	metric uint32
}

// compare orders routes to the same prefix: the one that the kernel takes comes first.
func (a answer) compare(b answer) int {
	return cmp.Or(cmp.Compare(a.table, b.table), cmp.Compare(a.metric, b.metric))
}

// answers are those of one uplink and family.
type answers struct {
	any   netip.Addr // the source of one route
	whole answer     // of the default route, if it is valid
	mixed bool       // not all have the same source, and that of whole
	list  []answer   // all, if they are mixed
}

func (s *answers) survey(a answer) {
	if !s.any.IsValid() {
		s.any = a.Addr
	}
	s.mixed = s.mixed || a.Addr != s.any
	if a.Destination.Bits() == 0 && (!s.whole.Addr.IsValid() || a.compare(s.whole) < 0) {
		s.whole = a
	}
}

func (s *answers) collect(a answer) {
	if s.mixed {
		s.list = append(s.list, a)
	}
}

// settleWhole finds the source for what no route is known for.
func (c *chooser) settleWhole(index int, all netip.Prefix, s *answers) {
	if !s.whole.Addr.IsValid() {
		s.whole.Addr = c.primary(index, all, s.any)
	}
	s.mixed = s.mixed || s.any.IsValid() && s.any != s.whole.Addr
}

// eachAnswer calls fn for the routes by some devices.
func (c *chooser) eachAnswer(families map[int]*[2]answers, fn func(*answers, answer)) {
	type key struct {
		*Hop
		family int
	}
	known := map[key]netip.Addr{}
	var last key // whose source is addr, and whose answers are f
	var addr netip.Addr
	var f *answers
	c.counted(func(r *Route, table int, d *device) {
		this := key{r.Hop, 0}
		if r.Destination.Addr().Is6() {
			this.family = 1
		}
		if this != last {
			last, f = this, nil
			if both := families[r.Device]; both != nil {
				f = &both[this.family]
				var ok bool
				if addr, ok = known[this]; !ok {
					addr = c.preferred(r.Hop, r.Destination)
					known[this] = addr
				}
			}
		}
		if f == nil || r.Selective {
			return
		}
		a := answer{Source{r.Destination, addr}, table, r.Metric}
		// For IPv4 the source depends on the next hop only, and for IPv6 too where there is but one candidate.
		if this.family == 1 && !r.Source.IsValid() && len(c.candidates6(d)) > 1 {
			a.Addr = c.preferred6(d, r.Destination)
		}
		if !a.Addr.IsValid() || r.Destination.Addr().IsLinkLocalUnicast() {
			return
		}
		fn(f, a)
		if r.Destination == all6 { // which hides that private destinations get a private address, where the node has one there
			a.Source = Source{uniqueLocal, c.preferred(r.Hop, uniqueLocal)}
			a.table += len(c.rank) // a route to the same prefix goes first
			fn(f, a)
		}
	})
}

// compact leaves out sources that a shorter prefix implies, and ends with the one of the zero prefix.
func (s *answers) compact(all netip.Prefix) []Source {
	if !s.whole.Addr.IsValid() {
		return nil
	}
	var k kept
	k.add(Source{all, s.whole.Addr})
	slices.SortStableFunc(s.list, func(a, b answer) int {
		return cmp.Or(cmp.Compare(a.Destination.Bits(), b.Destination.Bits()), a.Destination.Addr().Compare(b.Destination.Addr()), a.compare(b))
	})
	last := all
	for _, a := range s.list {
		if a.Destination == last {
			continue // by a route that matters less
		}
		last = a.Destination
		if k.of(a.Destination) != a.Addr {
			k.add(a.Source)
		}
	}
	return k.list
}

// primary is the address for destinations to which no route leads by a device: its own, else that of one of its
// routes, else the one by which the node reaches the outside.
func (c *chooser) primary(index int, all netip.Prefix, route netip.Addr) netip.Addr {
	d := c.byIndex[index]
	if a := c.preferred(&Hop{Device: index}, all); a.IsValid() && slices.ContainsFunc(d.addrs, func(own Addr) bool { return own.Local == a }) {
		return a
	}
	if route.IsValid() {
		return route
	}
	var best *Route
	for i := range c.Routes {
		r := &c.Routes[i]
		table, counts := c.rank[r.Table]
		if !counts || r.Destination != all || c.vrf(d) != c.vrfOf(r.Device) {
			continue
		}
		if best == nil || cmp.Or(cmp.Compare(table, c.rank[best.Table]), cmp.Compare(r.Metric, best.Metric)) < 0 {
			best = r
		}
	}
	if best != nil {
		return c.preferred(best.Hop, all)
	}
	return c.preferred(&Hop{Device: index}, all)
}

func (c *chooser) vrfOf(index int) *device {
	if d := c.byIndex[index]; d != nil {
		return c.vrf(d)
	}
	return nil
}

// kept are sources that are needed, each of a longer prefix than those before, or an equally long one.
type kept struct {
	list    []Source
	by      map[netip.Prefix]netip.Addr
	lengths []int // that there are, ascending
}

func (k *kept) add(s Source) {
	if k.by == nil {
		k.by = map[netip.Prefix]netip.Addr{}
	}
	k.list = append(k.list, s)
	k.by[s.Destination] = s.Addr
	if n := len(k.lengths); n == 0 || k.lengths[n-1] != s.Destination.Bits() {
		k.lengths = append(k.lengths, s.Destination.Bits())
	}
}

// of returns what is said already of a prefix.
func (k *kept) of(p netip.Prefix) netip.Addr {
	for _, bits := range slices.Backward(k.lengths) {
		if around, err := p.Addr().Prefix(bits); err == nil {
			if a, ok := k.by[around]; ok {
				return a
			}
		}
	}
	return netip.Addr{}
}

// bound sorts the sources for use: IPv4 first, and the longest prefix first. Of too many it keeps those for
// everything, then those for other nodes and their pods, then those of the shortest prefixes.
func bound(list []Source, limit int, important *reach) []Source {
	if len(list) > limit {
		weight := func(s Source) int {
			touches := important.within(s.Destination, true)
			important.below(s.Destination, func(int) bool { touches = true; return false })
			switch {
			case s.Destination.Bits() == 0:
				return 0
			case touches:
				return 1
			}
			return 2
		}
		slices.SortStableFunc(list, func(a, b Source) int {
			return cmp.Or(cmp.Compare(weight(a), weight(b)), cmp.Compare(a.Destination.Bits(), b.Destination.Bits()))
		})
		list = slices.Clone(list[:limit])
	}
	slices.SortFunc(list, func(a, b Source) int {
		return cmp.Or(cmp.Compare(a.Addr.BitLen(), b.Addr.BitLen()), cmp.Compare(b.Destination.Bits(), a.Destination.Bits()),
			a.Destination.Addr().Compare(b.Destination.Addr()))
	})
	return list
}
