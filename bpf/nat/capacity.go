package nat

import (
	"errors"
	"fmt"

	"github.com/firsthop/firsthop/bpf"
)

// What of a table is full. Each can be given more capacity alone.
var (
	ErrFrontendsFull    = fmt.Errorf("frontends: %w", ErrFull)
	ErrBackendsFull     = fmt.Errorf("backends: %w", ErrFull)
	ErrSourceRangesFull = errors.New("source ranges full")
)

// Capacity is for how many entries a table has room; 0: nobody knows, a write will tell.
type Capacity struct{ Frontends, Backends, SourceRanges int }

// room is how many more entries there is room for. What goes keeps its room
// until it was removed (Planner.Released).
type capacity struct {
	limits                      Capacity
	frontends, backends, ranges int
}

func capacityOf(s *State) capacity {
	r := capacity{limits: s.Capacity, frontends: -len(s.Frontends), backends: s.Capacity.Backends, ranges: s.Capacity.SourceRanges - len(s.SourceRanges)}
	for _, set := range s.Sets {
		r.backends -= len(set)
	}
	return r
}

// Released tells that what a plan removes is gone from the table, and that no program uses it.
func (p *Planner) Released(plan *Plan) {
	for _, index := range plan.Vacated {
		if add(p.vacated, index, -1); p.vacated[index] == 0 && p.own.Contains(index) {
			p.free = min(p.free, index)
		}
	}
	p.capacity.frontends += len(plan.Deletes)
	p.capacity.ranges += len(plan.OldSourceRanges)
	for _, set := range plan.OldSets {
		p.capacity.backends += len(set.Backends)
	}
}

// fits reports whether a service has room beside what it replaces. Its error matches ErrFull.
func (p *Planner) fits(index uint32, svc Service, targets [2]target) error {
	var frontends, backends int
	takes := func(k bpf.FrontendKey) {
		if _, there := p.state.Frontends[k]; !there && p.dirty.frontends[k] == nil {
			frontends++
		}
	}
	for _, k := range svc.Frontends {
		takes(k)
	}
	for _, v := range svc.VIPs {
		takes(bpf.VIPKeyOf(v))
	}
	for _, v := range svc.ExternalVIPs {
		takes(bpf.ExternalVIPKeyOf(v))
	}
	for _, t := range targets {
		if !t.same && !t.shared {
			backends += entries(len(t.backends), svc)
		}
	}
	ranges := len(distinctSourceRanges(svc.SourceRanges)) // of an index that none has yet
	if index != 0 {
		ranges = p.moreSourceRanges(index, svc.SourceRanges)
	}
	for _, x := range []struct {
		what               string
		want, left, limits int
		full               error
	}{
		{"frontends", frontends, p.capacity.limits.Frontends + p.capacity.frontends, p.capacity.limits.Frontends, ErrFrontendsFull},
		{"backends", backends, p.capacity.backends, p.capacity.limits.Backends, ErrBackendsFull},
		{"source ranges", ranges, p.capacity.ranges, p.capacity.limits.SourceRanges, ErrSourceRangesFull},
	} {
		if x.limits > 0 && x.want > x.left {
			return fmt.Errorf("needs room for %d %s, of %d there are %d left: %w", x.want, x.what, x.limits, max(x.left, 0), x.full)
		}
	}
	return nil
}
