package nat

import (
	"cmp"
	"maps"
	"slices"

	"github.com/firsthop/firsthop/bpf"
)

// touched remembers how everything was that a plan touches. What is put and
// taken back, or changed twice, is then written once or not at all.
type touched struct {
	frontends map[bpf.FrontendKey]*bpf.Frontend // nil: there was none
	words     map[uint32]bpf.ServiceState
	ranges    map[bpf.SourceRangeKey]bool
	newSets   map[uint32]map[uint32]bpf.Backend
	oldSets   map[uint32]map[uint32]bpf.Backend // were there when the plan began
	emptied   map[uint32]bool                   // indexes that lost all frontends at some time
}

func newTouched() touched {
	return touched{
		frontends: map[bpf.FrontendKey]*bpf.Frontend{},
		words:     map[uint32]bpf.ServiceState{},
		ranges:    map[bpf.SourceRangeKey]bool{},
		newSets:   map[uint32]map[uint32]bpf.Backend{},
		oldSets:   map[uint32]map[uint32]bpf.Backend{},
		emptied:   map[uint32]bool{},
	}
}

// touchFrontend is to be called before a frontend of the state changes; the others likewise.
func (p *Planner) touchFrontend(k bpf.FrontendKey) {
	if _, known := p.touched.frontends[k]; known {
		return
	}
	p.touched.frontends[k] = nil
	if fe, there := p.state.Frontends[k]; there {
		p.touched.frontends[k] = &fe
	}
}

func (p *Planner) touchWord(at uint32) {
	if _, known := p.touched.words[at]; !known {
		p.touched.words[at] = p.state.Words[at]
	}
}

func (p *Planner) touchRange(k bpf.SourceRangeKey) {
	if _, known := p.touched.ranges[k]; !known {
		p.touched.ranges[k] = p.state.Ranges[k]
	}
}

// Plan is what was planned so far.
func (p *Planner) Plan() *Plan {
	plan := &Plan{
		NewSets: sortedSets(p.touched.newSets),
		OldSets: sortedSets(p.touched.oldSets),
	}
	if len(plan.NewSets) > 0 {
		plan.Generation = p.state.Generation
	}
	p.planWords(plan)
	p.planRanges(plan)
	p.planFrontends(plan)
	plan.Left = p.leaves(plan)
	return plan
}

// Take is Plan, after which the next one begins. Whoever takes it carries it out.
func (p *Planner) Take() *Plan {
	plan := p.Plan()
	for _, index := range plan.Left {
		add(p.left, index, +1)
	}
	for index := range p.touched.emptied { // those that came and went with this plan are free at once
		if p.own.Contains(index) && len(p.keys[index]) == 0 && p.left[index] == 0 {
			p.free = min(p.free, index)
		}
	}
	p.touched = newTouched()
	return plan
}

// leaves are the indexes that had frontends or words before a plan and have no frontends after it, sorted.
func (p *Planner) leaves(plan *Plan) []uint32 {
	var out []uint32
	note := func(fe bpf.Frontend) {
		if fe.Flags&bpf.FrontendVIP == 0 && len(p.keys[fe.Index]) == 0 {
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
	for _, w := range plan.LastWords { // of one that a killed writer left, maybe
		if index := w.At / 2; len(p.keys[index]) == 0 {
			out = append(out, index)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (p *Planner) planWords(plan *Plan) {
	for _, at := range slices.Sorted(maps.Keys(p.touched.words)) {
		change := WordChange{At: at, From: p.touched.words[at], To: p.state.Words[at]}
		switch {
		case change.From == change.To:
		case change.To == 0 && !p.pointedTo(at):
			plan.LastWords = append(plan.LastWords, change)
		default:
			plan.Words = append(plan.Words, change)
		}
	}
}

// pointedTo reports whether a frontend leads to a word after the plan. One that none does may have had some before: it is
// cleared when no program uses these as they were.
func (p *Planner) pointedTo(at uint32) bool {
	for k := range p.keys[at/2] {
		if bpf.ServiceStateAt(at/2, p.state.Frontends[k].Flags&bpf.FrontendLocalPolicy != 0) == at {
			return true
		}
	}
	return false
}

func (p *Planner) planRanges(plan *Plan) {
	for k, was := range p.touched.ranges {
		switch is := p.state.Ranges[k]; {
		case is && !was:
			plan.NewRanges = append(plan.NewRanges, k)
		case was && !is:
			plan.OldRanges = append(plan.OldRanges, k)
		}
	}
	for _, keys := range [][]bpf.SourceRangeKey{plan.NewRanges, plan.OldRanges} {
		slices.SortFunc(keys, func(a, b bpf.SourceRangeKey) int {
			return cmp.Or(cmp.Compare(a.Index, b.Index), a.Prefix().Addr().Compare(b.Prefix().Addr()), cmp.Compare(a.PrefixLen, b.PrefixLen))
		})
	}
	// What is not to be refused of the Service range is there before it, and goes after it.
	slices.Reverse(plan.NewRanges)
}

// planFrontends puts the marks of VIPs after the frontends that come, and before those that go: in between, a port that
// is served may not be refused.
func (p *Planner) planFrontends(plan *Plan) {
	keys := slices.Collect(maps.Keys(p.touched.frontends))
	sortKeys(keys)
	var marks, goingMarks []FrontendPut
	for _, k := range keys {
		was := p.touched.frontends[k]
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
