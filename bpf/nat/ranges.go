package nat

import (
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/bpf"
)

// The part of the planner that is about source ranges: of the clients that the
// limited frontends of a service let in. New ones come before old ones go, so
// that a client which both have is let in all the time.

func (p *Planner) setRanges(index uint32, want []netip.Prefix) {
	have := p.ranges[index]
	next := distinctRanges(want)
	for _, r := range next {
		if !slices.Contains(have, r) {
			p.addRange(bpf.RangeKeyOf(index, r))
		}
	}
	for _, r := range have {
		if !slices.Contains(next, r) {
			k := bpf.RangeKeyOf(index, r)
			p.touchRange(k)
			delete(p.state.Ranges, k)
			if !p.touched.ranges[k] {
				p.room.ranges++
			}
		}
	}
	if len(next) == 0 {
		delete(p.ranges, index)
	} else {
		p.ranges[index] = next
	}
}

func (p *Planner) addRange(k bpf.RangeKey) {
	p.touchRange(k)
	p.state.Ranges[k] = true
	if !p.touched.ranges[k] {
		p.room.ranges--
	}
}

func distinctRanges(in []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range in {
		if r = r.Masked(); !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}
