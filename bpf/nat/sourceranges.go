package nat

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/bpf"
)

// The part of the planner that is about ranges: of the clients that the limited
// frontends of a service allow, and of the addresses that Services have. New ones come before old ones go, so
// that a client which both have is allowed all the time. A Service may have tens
// of thousands.

func (p *Planner) setSourceRanges(index uint32, want []netip.Prefix) {
	have := p.sourceRanges[index]
	if slices.Equal(have, want) {
		return
	}
	next := distinctSourceRanges(want)
	had, wanted := setOf(have), setOf(next)
	for _, r := range next {
		if !had[r] {
			p.addSourceRange(bpf.SourceRangeKeyOf(index, r))
		}
	}
	for _, r := range have {
		if !wanted[r] {
			k := bpf.SourceRangeKeyOf(index, r)
			p.markSourceRange(k)
			delete(p.state.SourceRanges, k)
			if !p.dirty.ranges[k] {
				p.capacity.ranges++
			}
		}
	}
	if len(next) == 0 {
		delete(p.sourceRanges, index)
	} else {
		p.sourceRanges[index] = next
	}
}

func (p *Planner) addSourceRange(k bpf.SourceRangeKey) {
	p.markSourceRange(k)
	p.state.SourceRanges[k] = true
	if !p.dirty.ranges[k] {
		p.capacity.ranges--
	}
}

// moreSourceRanges is how many entries more the ranges of an index take.
func (p *Planner) moreSourceRanges(index uint32, want []netip.Prefix) int {
	if slices.Equal(p.sourceRanges[index], want) {
		return 0
	}
	had := setOf(p.sourceRanges[index])
	n := 0
	for _, r := range distinctSourceRanges(want) {
		if !had[r] && !p.dirty.ranges[bpf.SourceRangeKeyOf(index, r)] {
			n++
		}
	}
	return n
}

// SetServiceRanges plans which addresses are those of Services: connections to
// one that is no frontend are refused, unless others names it. Written to by the
// runtime alone, but the ranges are no writer's. An error matches ErrSourceRangesFull;
// nothing was planned then.
func (p *Planner) SetServiceRanges(ranges, others []netip.Prefix) error {
	more := p.moreSourceRanges(bpf.IndexServiceCIDR, ranges) + p.moreSourceRanges(bpf.IndexServiceExcept, others)
	if p.capacity.limits.SourceRanges > 0 && more > p.capacity.ranges {
		return fmt.Errorf("the Service range needs room for %d ranges, of %d there are %d left: %w",
			more, p.capacity.limits.SourceRanges, max(p.capacity.ranges, 0), ErrSourceRangesFull)
	}
	p.setSourceRanges(bpf.IndexServiceCIDR, ranges)
	p.setSourceRanges(bpf.IndexServiceExcept, others)
	return nil
}

// unallocated does what the programs do with an address that is no frontend.
func (s *State) unallocated(a netip.Addr) bool {
	return s.inRange(bpf.IndexServiceCIDR, a) && !s.inRange(bpf.IndexServiceExcept, a)
}

// inRange does what a lookup in the trie does.
func (s *State) inRange(index uint32, a netip.Addr) bool {
	for bits := a.BitLen(); bits >= 0; bits-- {
		if s.SourceRanges[bpf.SourceRangeKeyOf(index, netip.PrefixFrom(a, bits))] {
			return true
		}
	}
	return false
}

// ServiceRanges are the addresses of Services, and those of them that others serve, sorted.
func (s *State) ServiceRanges() (ranges, others []netip.Prefix) {
	for k := range s.SourceRanges {
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

func distinctSourceRanges(in []netip.Prefix) []netip.Prefix {
	return distinctOf(in, netip.Prefix.Masked)
}

func setOf[T comparable](in []T) map[T]bool {
	set := make(map[T]bool, len(in))
	for _, x := range in {
		set[x] = true
	}
	return set
}
