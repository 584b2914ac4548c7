package nat

import (
	"cmp"
	"maps"
	"slices"

	"github.com/firsthop/firsthop/bpf"
)

// dirty remembers how everything was that a plan touches. What is put and
// taken back, or changed twice, is then written once or not at all.
type dirty struct {
	frontends map[bpf.FrontendKey]*bpf.Frontend // nil: there was none
	states    map[uint32]bpf.ServiceState
	ranges    map[bpf.SourceRangeKey]bool
	newSets   map[uint32]map[uint32]bpf.Backend
	oldSets   map[uint32]map[uint32]bpf.Backend // were there when the plan began
	emptied   map[uint32]bool                   // indexes that lost all frontends at some time
}

func newDirty() dirty {
	return dirty{
		frontends: map[bpf.FrontendKey]*bpf.Frontend{},
		states:    map[uint32]bpf.ServiceState{},
		ranges:    map[bpf.SourceRangeKey]bool{},
		newSets:   map[uint32]map[uint32]bpf.Backend{},
		oldSets:   map[uint32]map[uint32]bpf.Backend{},
		emptied:   map[uint32]bool{},
	}
}

// markFrontend is to be called before a frontend of the state changes; the others likewise.
func (p *Planner) markFrontend(k bpf.FrontendKey) {
	if _, known := p.dirty.frontends[k]; known {
		return
	}
	p.dirty.frontends[k] = nil
	if fe, there := p.state.Frontends[k]; there {
		p.dirty.frontends[k] = &fe
	}
}

func (p *Planner) markState(at uint32) {
	if _, known := p.dirty.states[at]; !known {
		p.dirty.states[at] = p.state.ServiceStates[at]
	}
}

func (p *Planner) markSourceRange(k bpf.SourceRangeKey) {
	if _, known := p.dirty.ranges[k]; !known {
		p.dirty.ranges[k] = p.state.SourceRanges[k]
	}
}

// Plan is what was planned so far.
func (p *Planner) Plan() *Plan {
	plan := &Plan{
		NewSets: sortedSets(p.dirty.newSets),
		OldSets: sortedSets(p.dirty.oldSets),
	}
	if len(plan.NewSets) > 0 {
		plan.Generation = p.state.Generation
	}
	p.planStates(plan)
	p.planSourceRanges(plan)
	p.planFrontends(plan)
	plan.Vacated = p.vacates(plan)
	return plan
}

// Take is Plan, after which the next one begins. The caller carries it out.
func (p *Planner) Take() *Plan {
	plan := p.Plan()
	for _, index := range plan.Vacated {
		add(p.vacated, index, +1)
	}
	for index := range p.dirty.emptied { // those that came and went with this plan are free at once
		if p.own.Contains(index) && len(p.keys[index]) == 0 && p.vacated[index] == 0 {
			p.free = min(p.free, index)
		}
	}
	p.dirty = newDirty()
	return plan
}

// vacates are the indexes that had frontends or states before a plan and have no frontends after it, sorted.
func (p *Planner) vacates(plan *Plan) []uint32 {
	var out []uint32
	note := func(fe bpf.Frontend) {
		if !fe.Mark() && len(p.keys[fe.Index]) == 0 {
			out = append(out, fe.Index)
		}
	}
	for _, put := range plan.Puts {
		if put.Former != nil {
			note(*put.Former)
		}
	}
	for _, going := range plan.Deletes {
		note(going.Frontend)
	}
	for _, w := range plan.DeferredStates { // of one that a killed writer left, maybe
		if index := w.At / 2; len(p.keys[index]) == 0 {
			out = append(out, index)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (p *Planner) planStates(plan *Plan) {
	for _, at := range slices.Sorted(maps.Keys(p.dirty.states)) {
		change := StateChange{At: at, From: p.dirty.states[at], To: p.state.ServiceStates[at]}
		switch {
		case change.From == change.To:
		case change.To == 0 && !p.pointedTo(at):
			plan.DeferredStates = append(plan.DeferredStates, change)
		default:
			plan.ServiceStates = append(plan.ServiceStates, change)
		}
	}
}

// pointedTo reports whether a frontend leads to a state after the plan. One that none does may have had some before: it is
// cleared when no program uses these as they were.
func (p *Planner) pointedTo(at uint32) bool {
	for k := range p.keys[at/2] {
		if p.state.Frontends[k].Uses(bpf.ServiceStateAt(at/2, true) == at) {
			return true
		}
	}
	return false
}

func (p *Planner) planSourceRanges(plan *Plan) {
	for k, was := range p.dirty.ranges {
		switch is := p.state.SourceRanges[k]; {
		case is && !was:
			plan.NewSourceRanges = append(plan.NewSourceRanges, k)
		case was && !is:
			plan.OldSourceRanges = append(plan.OldSourceRanges, k)
		}
	}
	for _, keys := range [][]bpf.SourceRangeKey{plan.NewSourceRanges, plan.OldSourceRanges} {
		slices.SortFunc(keys, func(a, b bpf.SourceRangeKey) int {
			return cmp.Or(cmp.Compare(a.Index, b.Index), a.Prefix().Addr().Compare(b.Prefix().Addr()), cmp.Compare(a.PrefixLen, b.PrefixLen))
		})
	}
	// What is not to be refused of the Service range is there before it, and goes after it.
	slices.Reverse(plan.NewSourceRanges)
}

// planFrontends puts the marks of VIPs after the frontends that come, and before those that go: in between, a port that
// is served may not be refused.
func (p *Planner) planFrontends(plan *Plan) {
	keys := slices.Collect(maps.Keys(p.dirty.frontends))
	sortKeys(keys)
	var marks, goingMarks []FrontendPut
	for _, k := range keys {
		was := p.dirty.frontends[k]
		is, there := p.state.Frontends[k]
		switch {
		case there && was != nil && *was == is, !there && was == nil:
		case there && k.Proto == 0:
			marks = append(marks, FrontendPut{Key: k, Frontend: is, Former: was})
		case there:
			plan.Puts = append(plan.Puts, FrontendPut{Key: k, Frontend: is, Former: was})
		case k.Proto == 0:
			goingMarks = append(goingMarks, FrontendPut{Key: k, Frontend: *was})
		default:
			plan.Deletes = append(plan.Deletes, FrontendPut{Key: k, Frontend: *was})
		}
	}
	plan.Puts = append(plan.Puts, marks...)
	plan.Deletes = append(goingMarks, plan.Deletes...)
}

func sortedSets(sets map[uint32]map[uint32]bpf.Backend) []Set {
	var out []Set
	for _, id := range slices.Sorted(maps.Keys(sets)) {
		out = append(out, Set{ID: id, Backends: sets[id]})
	}
	return out
}
