package nat

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/bpf"
)

// ErrOwned says that a frontend belongs to a service of another writer.
var ErrOwned = errors.New("frontend belongs to another writer")

// ErrNoIndex says that a writer's range of service indexes is used up.
var ErrNoIndex = errors.New("no free service index")

// Plan is an ordered list of writes, from which and to which state is known.
type Plan struct {
	Generation      uint64 // highest set id after the plan; 0: unchanged
	NewSets         []Set  // written before any state points to them
	NewSourceRanges []bpf.SourceRangeKey
	ServiceStates   []StateChange // in order
	Puts            []FrontendPut // in order
	Deletes         []FrontendPut // in order; Frontend is the value that goes

	// After a grace period.
	DeferredStates  []StateChange // states that no frontend points to
	OldSourceRanges []bpf.SourceRangeKey
	OldSets         []Set
	Vacated         []uint32 // indexes without frontends now: nobody may have them before (Planner.Released)
}

// Set is the content of one backend set: slots, then member entries.
type Set struct {
	ID       uint32
	Backends map[uint32]bpf.Backend // by slot or member id
}

// StateChange flips a state. It is also the line that --dry-run prints.
type StateChange struct {
	At       uint32 // place in the services array
	From, To bpf.ServiceState
}

// FrontendPut is a frontend that comes or, in Plan.Deletes, goes.
type FrontendPut struct {
	Key      bpf.FrontendKey
	Frontend bpf.Frontend
	Former   *bpf.Frontend // what a frontend that comes takes the place of; nil: nothing
}

// Empty reports whether the plan writes nothing at all.
func (p *Plan) Empty() bool {
	return !p.Visible() && len(p.NewSets)+len(p.OldSets)+len(p.NewSourceRanges)+len(p.OldSourceRanges) == 0
}

// Visible reports whether the plan changes what traffic sees.
func (p *Plan) Visible() bool {
	return len(p.ServiceStates)+len(p.Puts)+len(p.Deletes)+len(p.DeferredStates) > 0
}

// AddsFrontends reports whether the plan writes frontends that are not there. Their
// memory may be that of others which went: no program may use these any more.
func (p *Plan) AddsFrontends() bool {
	return slices.ContainsFunc(p.Puts, func(put FrontendPut) bool { return put.Former == nil })
}

// replacesAtNodes reports whether frontends come, and something goes that programs
// look for after them: what serves node ports at the addresses of other nodes. A
// program that missed a frontend before it came has to find that.
func (p *Plan) replacesAtNodes() bool {
	return p.AddsFrontends() && slices.ContainsFunc(p.Deletes, func(d FrontendPut) bool { return d.Key.Nodes != 0 })
}

// HasDeferred reports whether there is anything to do, or to wait for, after the plan was applied.
func (p *Plan) HasDeferred() bool {
	return len(p.Deletes)+len(p.DeferredStates)+len(p.OldSourceRanges)+len(p.OldSets)+len(p.Vacated) > 0
}

// Planner turns desired Services into plans for one writer. It changes its
// copy of the state as it plans, as if the plan were carried out. One that lives
// on hands out a plan at a time (Take), each at a cost that depends on what it
// changes and not on the table. After a plan that could not be carried out it is
// of no use any more: make a new one of what the table holds.
type Planner struct {
	state *State
	own   Indexes
	free  uint32 // every index of own below it is used, or was left

	keys         map[uint32]map[bpf.FrontendKey]bool // of each service index, marks left out
	shared       map[bpf.Address]int                 // how many frontends an address has, marks left out
	foreign      map[bpf.Address]int                 // how many of them are of other writers
	sourceRanges map[uint32][]netip.Prefix           // of each service index
	nodes        map[netip.Addr]bool                 // addresses that are marked as other nodes'
	capacity     capacity

	vacated map[uint32]int // indexes that plans left which are not Released yet, and how many plans did
	dirty   dirty
}

// NewPlanner starts a plan on a copy of state. The first thing that it plans
// is to collect what a killed writer left: sets that no state points to, and
// states and source ranges of the writer's own indexes that have no frontend.
func NewPlanner(state *State, own Indexes) *Planner {
	if state.Services > 0 {
		own.Last = min(own.Last, state.Services-1)
	}
	p := &Planner{
		state: state.clone(), own: own, free: own.First,
		keys:         map[uint32]map[bpf.FrontendKey]bool{},
		shared:       map[bpf.Address]int{},
		foreign:      map[bpf.Address]int{},
		sourceRanges: map[uint32][]netip.Prefix{},
		nodes:        map[netip.Addr]bool{},
		vacated:      map[uint32]int{},
		dirty:        newDirty(),
	}
	var marked []bpf.FrontendKey
	for k, fe := range p.state.Frontends {
		p.index(k, fe, +1)
		switch {
		case fe.Flags&bpf.FrontendNode != 0:
			p.nodes[k.Addr.Addr()] = true
		case fe.Mark() && fe.Flags&bpf.FrontendExternal != 0:
			marked = append(marked, k)
		}
	}
	for k := range p.state.SourceRanges {
		p.sourceRanges[k.Index] = append(p.sourceRanges[k.Index], k.Prefix())
	}
	p.capacity = capacityOf(p.state)
	p.collect(marked)
	return p
}

// Expect makes room for a number of Services before they are planned: to let the
// planner's maps grow to 10,000 is a tenth of what they cost it.
func (p *Planner) Expect(services int) {
	if services < 2*len(p.keys) {
		return
	}
	reserve(&p.keys, services)
	reserve(&p.shared, services)
	reserve(&p.state.Frontends, 2*services) // with the marks
	reserve(&p.state.ServiceStates, services)
	reserve(&p.state.Sets, services)
	reserve(&p.dirty.frontends, 2*services)
	reserve(&p.dirty.states, services)
	reserve(&p.dirty.newSets, services)
}

// reserve gives a map room for n entries.
func reserve[K comparable, V any](m *map[K]V, n int) {
	larger := make(map[K]V, n)
	maps.Copy(larger, *m)
	*m = larger
}

// index notes a frontend that comes (+1) or goes (-1).
func (p *Planner) index(k bpf.FrontendKey, fe bpf.Frontend, by int) {
	if k.Proto == 0 {
		return
	}
	add(p.shared, k.Addr, by)
	if !p.own.Contains(fe.Index) {
		add(p.foreign, k.Addr, by)
	}
	if by > 0 {
		if p.keys[fe.Index] == nil {
			p.keys[fe.Index] = map[bpf.FrontendKey]bool{}
		}
		p.keys[fe.Index][k] = true
		return
	}
	delete(p.keys[fe.Index], k)
	if len(p.keys[fe.Index]) == 0 {
		delete(p.keys, fe.Index)
		p.dirty.emptied[fe.Index] = true
	}
}

func add[K comparable](counts map[K]int, k K, by int) {
	counts[k] += by
	if counts[k] == 0 {
		delete(counts, k)
	}
}

// State is the table as it will be after the plan.
func (p *Planner) State() *State { return p.state }

// collect plans that goes what nothing leads to. marked are the marks for clients outside: a former version doesn't know
// them, and leaves those of addresses that lose their last frontend.
func (p *Planner) collect(marked []bpf.FrontendKey) {
	for _, k := range marked {
		if p.shared[k.Addr] == 0 {
			p.deleteFrontend(k)
		}
	}
	live := map[uint32]bool{}
	for _, at := range slices.Sorted(maps.Keys(p.state.ServiceStates)) {
		w := p.state.ServiceStates[at]
		if index := at / 2; p.own.Contains(index) && len(p.keys[index]) == 0 {
			p.markState(at)
			delete(p.state.ServiceStates, at)
			continue
		}
		live[w.Set()] = true
	}
	for _, id := range slices.Sorted(maps.Keys(p.state.Sets)) {
		if !live[id] {
			p.removeSet(id)
		}
	}
	for _, index := range slices.Sorted(maps.Keys(p.sourceRanges)) {
		if p.own.Contains(index) && len(p.keys[index]) == 0 {
			p.setSourceRanges(index, nil)
		}
	}
}

// Owner finds the service index that a Service has in the table. found is
// false if none of its frontends is there. Where they belong to several of the
// writer's own services, it is the lowest, with which Ensure joins the others;
// one of another writer goes before the writer's own. It is an error if they
// belong to several of other writers.
func (p *Planner) Owner(svc Service) (index uint32, found bool, err error) {
	for _, k := range svc.Frontends {
		fe, ok := p.state.Frontends[k]
		switch foreign := !p.own.Contains(fe.Index); {
		case !ok || found && fe.Index == index:
		case !found:
			index, found = fe.Index, true
		case foreign && !p.own.Contains(index):
			return 0, false, fmt.Errorf("service %s: its frontends belong to services %d and %d of another writer", svc.Name, index, fe.Index)
		case foreign || p.own.Contains(index) && fe.Index < index:
			index = fe.Index
		}
	}
	return index, found, nil
}

// Ensure plans a Service of the writer's own: it gets an index, its frontends
// and its backends. Nothing is planned for what is already so. The order of
// backends has no meaning. Frontends that the Service has in the table, but
// not in svc, stay. ErrOwned: the Service belongs to another writer. ErrFull:
// it has no room. After an error nothing was planned.
func (p *Planner) Ensure(svc Service) error {
	if err := svc.Validate(); err != nil {
		return err
	}
	index, found, err := p.Owner(svc)
	if err != nil {
		return err
	}
	if found && !p.own.Contains(index) {
		return fmt.Errorf("service %s has index %d: %w", svc.Name, index, ErrOwned)
	}
	if !found {
		index = 0
	}
	_, err = p.put(index, svc)
	return err
}

// Assign plans that a service index of the writer's own is exactly svc: what
// else it had as frontends goes, and those of svc that others had become its
// own, also those of the init stage. Index 0 stands for a free one. It returns
// the index. After an error (ErrFull, ErrNoIndex) nothing was planned.
func (p *Planner) Assign(index uint32, svc Service) (uint32, error) {
	if err := svc.Validate(); err != nil {
		return 0, err
	}
	if index != 0 && !p.own.Contains(index) {
		return 0, fmt.Errorf("service %s: index %d: %w", svc.Name, index, ErrOwned)
	}
	index, err := p.put(index, svc)
	if err != nil {
		return 0, err
	}
	if surplus := p.surplus(index, svc); len(surplus) > 0 {
		p.RemoveFrontends(surplus)
	}
	return index, nil
}

// put plans a service at an index, or, for 0, at a free one.
func (p *Planner) put(index uint32, svc Service) (uint32, error) {
	svc = p.keepLocal(index, svc)
	targets := p.targets(index, svc)
	if err := p.fits(index, svc, targets); err != nil {
		return 0, fmt.Errorf("service %s: %w", svc.Name, err)
	}
	if index == 0 {
		var err error
		if index, err = p.allocate(); err != nil {
			return 0, fmt.Errorf("service %s: %w", svc.Name, err)
		}
	}
	p.setSourceRanges(index, svc.SourceRanges)
	if err := p.setBackends(index, svc, targets); err != nil {
		return 0, fmt.Errorf("service %s: %w", svc.Name, err)
	}
	joined := map[uint32]bool{}
	for _, k := range svc.Frontends {
		if old, ok := p.state.Frontends[k]; ok && old.Index != index {
			joined[old.Index] = true
		}
		flags := svc.Flags[k]
		if svc.Sticky {
			flags |= bpf.FrontendSticky
		}
		p.putFrontend(k, bpf.Frontend{Index: index, Flags: flags})
	}
	p.mark(svc)
	for _, other := range slices.Sorted(maps.Keys(joined)) {
		if len(p.keys[other]) == 0 {
			p.clear(other)
		}
	}
	return index, nil
}

// keepLocal lets frontends whose Local policies ended go on using the state for local traffic, which then leads to the same
// set as the other: that takes one store, and leaves nothing to be removed.
func (p *Planner) keepLocal(index uint32, svc Service) Service {
	if index == 0 || svc.hasLocal() {
		return svc
	}
	var flags map[bpf.FrontendKey]bpf.FrontendFlags
	for _, k := range svc.Frontends {
		fe := p.state.Frontends[k]
		kept := fe.Flags & localFlags
		if svc.Flags[k]&bpf.FrontendExternal == 0 {
			kept &^= bpf.FrontendExternalLocal
		}
		if fe.Index == index && kept != 0 {
			if flags == nil {
				flags = make(map[bpf.FrontendKey]bpf.FrontendFlags, len(svc.Frontends))
				maps.Copy(flags, svc.Flags)
			}
			flags[k] |= kept
		}
	}
	if flags != nil {
		svc.Flags, svc.Local = flags, svc.Backends
	}
	return svc
}

// Remove plans that a service of the writer's own goes: its frontends, the
// marks of addresses that no other service has, its states, sets and ranges.
func (p *Planner) Remove(index uint32) {
	p.RemoveFrontends(p.frontendsOf(index))
	p.clear(index)
}

// clear plans that the states and sets of a service without frontends go.
func (p *Planner) clear(index uint32) {
	for _, at := range []uint32{bpf.ServiceStateAt(index, false), bpf.ServiceStateAt(index, true)} {
		w, ok := p.state.ServiceStates[at]
		if !ok {
			continue
		}
		p.markState(at)
		delete(p.state.ServiceStates, at)
		if _, there := p.state.Sets[w.Set()]; there {
			p.removeSet(w.Set())
		}
	}
	p.setSourceRanges(index, nil)
}

// Replace plans other backends for a service of any writer, which keeps its
// index, frontends and flags.
func (p *Planner) Replace(index uint32, backends []netip.AddrPort) error {
	if len(backends) == 0 {
		return fmt.Errorf("service index %d would be left without a backend", index)
	}
	svc := Service{Backends: backends, Affinity: p.state.affinity(index), OnNode: p.state.OnNode(index)}
	for k := range p.keys[index] {
		if p.state.Frontends[k].Flags&bpf.FrontendSticky != 0 {
			svc.Sticky = true
		}
	}
	if local := bpf.ServiceStateAt(index, true); p.state.ServiceStates[local] != 0 { // its frontends may be for local traffic
		if err := p.setState(local, backends, svc); err != nil {
			return err
		}
	}
	return p.setState(bpf.ServiceStateAt(index, false), backends, svc)
}

// Has reports whether an index has frontends after the plan.
func (p *Planner) Has(index uint32) bool { return len(p.keys[index]) > 0 }

func (p *Planner) allocate() (uint32, error) {
	for ; p.free <= p.own.Last && p.free >= p.own.First; p.free++ {
		if i := p.free; len(p.keys[i]) == 0 && !p.dirty.emptied[i] && p.vacated[i] == 0 {
			p.free++
			return i, nil
		}
	}
	return 0, fmt.Errorf("%d to %d are all in use: %w", p.own.First, p.own.Last, ErrNoIndex)
}
