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
	Generation uint64        // highest set id after the plan; 0: unchanged
	NewSets    []Set         // written before any word points to them
	Words      []WordChange  // in order
	Puts       []FrontendPut // in order
	Deletes    []FrontendPut // in order; Frontend is the value that goes
	LastWords  []WordChange  // words that no frontend points to
	OldSets    []Set         // after a grace period
}

// Set is the content of one backend set: slots, then member entries.
type Set struct {
	ID       uint32
	Backends map[uint32]bpf.Backend // by slot or member id
}

// WordChange flips a word. It is also the line that --dry-run prints.
type WordChange struct {
	At       uint32 // place in the services array
	From, To bpf.Word
}

// FrontendPut is a frontend that comes or, in Plan.Deletes, goes.
type FrontendPut struct {
	Key      bpf.FrontendKey
	Frontend bpf.Frontend
	Former   *bpf.Frontend // what a frontend that comes takes the place of; nil: nothing
}

// Empty reports whether the plan writes nothing at all.
func (p *Plan) Empty() bool {
	return !p.Visible() && len(p.NewSets) == 0 && len(p.OldSets) == 0
}

// Visible reports whether the plan changes what traffic sees.
func (p *Plan) Visible() bool {
	return len(p.Words)+len(p.Puts)+len(p.Deletes)+len(p.LastWords) > 0
}

// Planner turns desired Services into plans for one writer. It changes its
// copy of the state as it plans, as if the plan were carried out.
type Planner struct {
	state *State
	own   Indexes
	plan  Plan
	used  map[uint32]bool // indexes that have a frontend or a word in this plan
	free  uint32          // every index of own below it is used
}

// NewPlanner starts a plan on a copy of state. The first thing that it plans
// is to collect what a killed writer left: sets that no word points to, and
// words of the writer's own range that no frontend points to.
func NewPlanner(state *State, own Indexes) *Planner {
	if state.Services > 0 {
		own.Last = min(own.Last, state.Services-1)
	}
	p := &Planner{state: state.clone(), own: own, used: map[uint32]bool{}, free: own.First}
	for _, fe := range p.state.Frontends {
		p.used[fe.Index] = true
	}
	p.collect()
	return p
}

// Plan is what was planned so far.
func (p *Planner) Plan() *Plan { return &p.plan }

// State is the table as it will be after the plan.
func (p *Planner) State() *State { return p.state }

func (p *Planner) collect() {
	live := map[uint32]bool{}
	for _, at := range slices.Sorted(maps.Keys(p.state.Words)) {
		w := p.state.Words[at]
		if index := at / 2; p.own.Contains(index) && !p.used[index] {
			p.plan.LastWords = append(p.plan.LastWords, WordChange{At: at, From: w})
			delete(p.state.Words, at)
			continue
		}
		live[w.Set()] = true
	}
	for _, id := range slices.Sorted(maps.Keys(p.state.Sets)) {
		if !live[id] {
			p.retire(id)
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
// not in svc, stay. ErrOwned: the Service belongs to another writer.
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
		if index, err = p.allocate(); err != nil {
			return fmt.Errorf("service %s: %w", svc.Name, err)
		}
	}
	if err := p.setBackends(index, svc.Backends, svc.Sticky); err != nil {
		return fmt.Errorf("service %s: %w", svc.Name, err)
	}
	flags := bpf.FrontendFlags(0)
	if svc.Sticky {
		flags |= bpf.FrontendSticky
	}
	joined := map[uint32]bool{}
	for _, k := range svc.Frontends {
		if old, ok := p.state.Frontends[k]; ok && old.Index != index {
			joined[old.Index] = true
		}
		p.putFrontend(k, bpf.Frontend{Index: index, Flags: flags})
	}
	p.mark(svc)
	for _, other := range slices.Sorted(maps.Keys(joined)) {
		if len(p.state.FrontendsOf(other)) == 0 {
			p.clear(other)
		}
	}
	return nil
}

// mark plans the marks of a Service's VIPs, and takes those away that its
// addresses have but should not, unless another writer has Services there.
func (p *Planner) mark(svc Service) {
	for _, k := range svc.Frontends {
		mark := bpf.FrontendKey{Addr: k.Addr}
		_, marked := p.state.Frontends[mark]
		switch {
		case slices.Contains(svc.VIPs, k.Addr.Addr()):
			p.putFrontend(mark, bpf.Frontend{Flags: bpf.FrontendVIP})
		case marked && !p.othersAt(k.Addr):
			p.deleteFrontend(mark)
		}
	}
}

// othersAt reports whether a service of another writer has an address.
func (p *Planner) othersAt(addr bpf.Address) bool {
	for k, fe := range p.state.Frontends {
		if k.Addr == addr && k.Proto != 0 && !p.own.Contains(fe.Index) {
			return true
		}
	}
	return false
}

// Remove plans that a service of the writer's own goes: its frontends, the
// marks of addresses that no other service has, its words and its sets.
func (p *Planner) Remove(index uint32) {
	p.RemoveFrontends(p.state.FrontendsOf(index))
	p.clear(index)
}

// RemoveFrontends plans that frontends of the writer's own go, and the marks of
// addresses that have no others. Their services stay.
func (p *Planner) RemoveFrontends(keys []bpf.FrontendKey) {
	used := map[bpf.Address]bool{}
	for k := range p.state.Frontends {
		if k.Proto != 0 && !slices.Contains(keys, k) {
			used[k.Addr] = true
		}
	}
	for _, k := range keys {
		if !used[k.Addr] {
			p.deleteFrontend(bpf.FrontendKey{Addr: k.Addr})
		}
	}
	for _, k := range keys {
		p.deleteFrontend(k)
	}
}

func (p *Planner) deleteFrontend(k bpf.FrontendKey) {
	if fe, ok := p.state.Frontends[k]; ok {
		p.plan.Deletes = append(p.plan.Deletes, FrontendPut{Key: k, Frontend: fe})
		delete(p.state.Frontends, k)
	}
}

// clear plans that the words and sets of a service without frontends go.
func (p *Planner) clear(index uint32) {
	for _, at := range []uint32{bpf.WordAt(index, false), bpf.WordAt(index, true)} {
		w, ok := p.state.Words[at]
		if !ok {
			continue
		}
		p.plan.LastWords = append(p.plan.LastWords, WordChange{At: at, From: w})
		delete(p.state.Words, at)
		if _, there := p.state.Sets[w.Set()]; there {
			p.retire(w.Set())
		}
	}
}

// Replace plans other backends for a service of any writer, which keeps its
// index, frontends and flags.
func (p *Planner) Replace(index uint32, backends []netip.AddrPort) error {
	if len(backends) == 0 {
		return fmt.Errorf("service index %d would be left without a backend", index)
	}
	sticky := false
	for _, fe := range p.state.Frontends {
		if fe.Index == index && fe.Flags&bpf.FrontendSticky != 0 {
			sticky = true
		}
	}
	return p.setBackends(index, backends, sticky)
}

func (p *Planner) allocate() (uint32, error) {
	for ; p.free <= p.own.Last && p.free >= p.own.First; p.free++ {
		if i := p.free; !p.used[i] {
			p.used[i] = true
			p.clearFirst(i)
			return i, nil
		}
	}
	return 0, fmt.Errorf("%d to %d are all in use: %w", p.own.First, p.own.Last, ErrNoIndex)
}

// clearFirst brings forward what was left over at an index that is about to get
// frontends: cleared at the end, the words of its new service would be lost.
func (p *Planner) clearFirst(index uint32) {
	var rest []WordChange
	for _, c := range p.plan.LastWords {
		if c.At/2 == index {
			p.plan.Words = append(p.plan.Words, c)
		} else {
			rest = append(rest, c)
		}
	}
	p.plan.LastWords = rest
}

func (p *Planner) putFrontend(k bpf.FrontendKey, fe bpf.Frontend) {
	put := FrontendPut{Key: k, Frontend: fe}
	if old, ok := p.state.Frontends[k]; ok {
		if old == fe {
			return
		}
		put.Former = &old
	}
	p.plan.Puts = append(p.plan.Puts, put)
	p.state.Frontends[k] = fe
}
