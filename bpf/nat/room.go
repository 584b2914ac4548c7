package nat

import (
	"errors"
	"fmt"

	"github.com/firsthop/firsthop/bpf"
)

// What of a table is full. Each can be given more capacity alone.
var (
	ErrFrontendsFull = fmt.Errorf("frontends: %w", ErrFull)
	ErrBackendsFull  = fmt.Errorf("backends: %w", ErrFull)
	ErrRangesFull    = errors.New("source ranges full")
)

// Room is for how many entries a table has room; 0: nobody knows, a write will tell.
type Room struct{ Frontends, Backends, Ranges int }

// room is how many more entries there is room for. What goes keeps its room
// until it was removed (Planner.Freed).
type room struct {
	limits                      Room
	frontends, backends, ranges int
}

func roomOf(s *State) room {
	r := room{limits: s.Room, frontends: -len(s.Frontends), backends: s.Room.Backends, ranges: s.Room.Ranges - len(s.Ranges)}
	for _, set := range s.Sets {
		r.backends -= len(set)
	}
	return r
}

// Freed tells that what a plan removes is gone from the table, and that no program uses it.
func (p *Planner) Freed(plan *Plan) {
	for _, index := range plan.Left {
		if add(p.left, index, -1); p.left[index] == 0 && p.own.Contains(index) {
			p.free = min(p.free, index)
		}
	}
	p.room.frontends += len(plan.Deletes)
	p.room.ranges += len(plan.OldRanges)
	for _, set := range plan.OldSets {
		p.room.backends += len(set.Backends)
	}
}

// fits reports whether a service has room beside what it replaces. Its error matches ErrFull.
func (p *Planner) fits(index uint32, svc Service, targets [2]target) error {
	var frontends, backends int
	takes := func(k bpf.FrontendKey) {
		if _, there := p.state.Frontends[k]; !there && p.touched.frontends[k] == nil {
			frontends++
		}
	}
	for _, k := range svc.Frontends {
		takes(k)
	}
	for _, v := range svc.VIPs {
		takes(bpf.VIPKeyOf(v))
	}
	for _, t := range targets {
		if !t.same && !t.shared {
			backends += entries(len(t.backends), svc)
		}
	}
	ranges := len(distinctRanges(svc.Ranges)) // of an index that none has yet
	if index != 0 {
		ranges = p.moreRanges(index, svc.Ranges)
	}
	for _, x := range []struct {
		what               string
		want, left, limits int
		full               error
	}{
		{"frontends", frontends, p.room.limits.Frontends + p.room.frontends, p.room.limits.Frontends, ErrFrontendsFull},
		{"backends", backends, p.room.backends, p.room.limits.Backends, ErrBackendsFull},
		{"source ranges", ranges, p.room.ranges, p.room.limits.Ranges, ErrRangesFull},
	} {
		if x.limits > 0 && x.want > x.left {
			return fmt.Errorf("needs room for %d %s, of %d there are %d left: %w", x.want, x.what, x.limits, max(x.left, 0), x.full)
		}
	}
	return nil
}
