package nat

import (
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/bpf"
)

// The part of the planner that is about source ranges: of the clients that the
// limited frontends of a service let in. New ones come before old ones go, so
// that a client which both have is let in all the time. A Service may have tens
// of thousands.

func (p *Planner) setRanges(index uint32, want []netip.Prefix) {
	have := p.ranges[index]
	if slices.Equal(have, want) {
		return
	}
	next := distinctRanges(want)
	had, wanted := setOf(have), setOf(next)
	for _, r := range next {
		if !had[r] {
			p.addRange(bpf.RangeKeyOf(index, r))
		}
	}
	for _, r := range have {
		if !wanted[r] {
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

// moreRanges is how many entries more the source ranges of a service take.
func (p *Planner) moreRanges(index uint32, svc Service) int {
	if slices.Equal(p.ranges[index], svc.Ranges) {
		return 0
	}
	had := setOf(p.ranges[index])
	n := 0
	for _, r := range distinctRanges(svc.Ranges) {
		if index == 0 || !had[r] && !p.touched.ranges[bpf.RangeKeyOf(index, r)] {
			n++
		}
	}
	return n
}

func distinctRanges(in []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(in))
	seen := make(map[netip.Prefix]bool, len(in))
	for _, r := range in {
		if r = r.Masked(); !seen[r] {
			seen[r] = true
			out = append(out, r)
		}
	}
	return out
}

func setOf(in []netip.Prefix) map[netip.Prefix]bool {
	set := make(map[netip.Prefix]bool, len(in))
	for _, r := range in {
		set[r] = true
	}
	return set
}
