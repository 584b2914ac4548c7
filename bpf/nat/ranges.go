package nat

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/bpf"
)

// The part of the planner that is about ranges: of the clients that the limited
// frontends of a service let in, and of the addresses that Services have. New ones come before old ones go, so
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
			p.addRange(bpf.SourceRangeKeyOf(index, r))
		}
	}
	for _, r := range have {
		if !wanted[r] {
			k := bpf.SourceRangeKeyOf(index, r)
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

func (p *Planner) addRange(k bpf.SourceRangeKey) {
	p.touchRange(k)
	p.state.Ranges[k] = true
	if !p.touched.ranges[k] {
		p.room.ranges--
	}
}

// moreRanges is how many entries more the ranges of an index take.
func (p *Planner) moreRanges(index uint32, want []netip.Prefix) int {
	if slices.Equal(p.ranges[index], want) {
		return 0
	}
	had := setOf(p.ranges[index])
	n := 0
	for _, r := range distinctRanges(want) {
		if !had[r] && !p.touched.ranges[bpf.SourceRangeKeyOf(index, r)] {
			n++
		}
	}
	return n
}

// SetServiceRanges plans which addresses are those of Services: connections to
// one that is no frontend are refused, unless others names it. Written to by the
// runtime alone, but the ranges are no writer's. An error matches ErrRangesFull;
// nothing was planned then.
func (p *Planner) SetServiceRanges(ranges, others []netip.Prefix) error {
	more := p.moreRanges(bpf.IndexServiceCIDR, ranges) + p.moreRanges(bpf.IndexServiceExcept, others)
	if p.room.limits.Ranges > 0 && more > p.room.ranges {
		return fmt.Errorf("the Service range needs room for %d ranges, of %d there are %d left: %w",
			more, p.room.limits.Ranges, max(p.room.ranges, 0), ErrRangesFull)
	}
	p.setRanges(bpf.IndexServiceCIDR, ranges)
	p.setRanges(bpf.IndexServiceExcept, others)
	return nil
}

// unallocated does what the programs do with an address that is no frontend.
func (s *State) unallocated(a netip.Addr) bool {
	return s.inRange(bpf.IndexServiceCIDR, a) && !s.inRange(bpf.IndexServiceExcept, a)
}

// inRange does what a lookup in the trie does.
func (s *State) inRange(index uint32, a netip.Addr) bool {
	for bits := a.BitLen(); bits >= 0; bits-- {
		if s.Ranges[bpf.SourceRangeKeyOf(index, netip.PrefixFrom(a, bits))] {
			return true
		}
	}
	return false
}

// ServiceRanges are the addresses of Services, and those of them that others serve, sorted.
func (s *State) ServiceRanges() (ranges, others []netip.Prefix) {
	for k := range s.Ranges {
		switch k.Index {
		case bpf.IndexServiceCIDR:
			ranges = append(ranges, k.Prefix())
		case bpf.IndexServiceExcept:
			others = append(others, k.Prefix())
		}
	}
	slices.SortFunc(ranges, netip.Prefix.Compare)
	slices.SortFunc(others, netip.Prefix.Compare)
	return ranges, others
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
