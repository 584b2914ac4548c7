package writer

import (
	"log/slog"
	"slices"
	"sync"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

// retiring removes what plans have replaced, after a grace period, beside the
// writer: the next change need not wait for it. One grace period does for all
// plans that came before it began.
type retiring struct {
	store nat.Store
	log   *slog.Logger
	freed func(plans []retired, ok bool)

	mu      sync.Mutex
	changed *sync.Cond
	queue   []retired
	working int // plans that a grace period is waited for
	entries int // backends that the plans in queue or at work remove

	// Of the plans in queue or at work:
	deletes int                  // how many took frontends away
	words   map[uint32]int       // what is to be cleared or removed, and by how many
	ranges  map[bpf.RangeKey]int // likewise
	closed  bool
	done    chan struct{}
}

type retired struct {
	plan    *nat.Plan
	planner *nat.Planner
}

func newRetiring(store nat.Store, log *slog.Logger, freed func(plans []retired, ok bool)) *retiring {
	r := &retiring{store: store, log: log, freed: freed, done: make(chan struct{}), words: map[uint32]int{}, ranges: map[bpf.RangeKey]int{}}
	r.changed = sync.NewCond(&r.mu)
	go r.run()
	return r
}

// setStore changes where plans are carried out that are added from now on. Those
// before are of a table that goes as a whole.
func (r *retiring) setStore(store nat.Store) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.store = store
}

func (r *retiring) add(plan *nat.Plan, planner *nat.Planner) {
	if !plan.Retires() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = append(r.queue, retired{plan, planner})
	r.entries += backends(plan)
	r.note(plan, +1)
	r.changed.Broadcast()
}

// note keeps the books of what is to go, with the lock held.
func (r *retiring) note(plan *nat.Plan, by int) {
	if len(plan.Deletes) > 0 {
		r.deletes += by
	}
	for _, w := range plan.LastWords {
		if r.words[w.At] += by; r.words[w.At] == 0 {
			delete(r.words, w.At)
		}
	}
	for _, k := range plan.OldRanges {
		if r.ranges[k] += by; r.ranges[k] == 0 {
			delete(r.ranges, k)
		}
	}
}

// pending reports whether anything is still to be removed.
func (r *retiring) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.queue)+r.working > 0
}

// takingAway reports whether programs may use frontends that went.
func (r *retiring) takingAway() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.deletes > 0
}

// waitFor returns when a plan may be carried out. One that brings frontends waits
// until no program uses any that went: their memory may then hold others. And
// what an earlier plan is about to remove can't come back before it did, nor may
// a frontend lead there: a word that is to be cleared is another Service's until then.
func (r *retiring) waitFor(plan *nat.Plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.deletes > 0 && plan.Brings() || r.removes(plan) {
		r.changed.Wait()
	}
}

// removes reports whether anything is to be removed that a plan brings, with the lock held.
func (r *retiring) removes(plan *nat.Plan) bool {
	leads := func(put nat.FrontendPut) bool {
		return r.words[bpf.WordAt(put.Frontend.Index, put.Frontend.Flags&bpf.FrontendLocal != 0)] > 0
	}
	return len(r.words) > 0 && slices.ContainsFunc(plan.Words, func(w nat.WordChange) bool { return r.words[w.At] > 0 }) ||
		len(r.words) > 0 && slices.ContainsFunc(plan.Puts, leads) ||
		len(r.ranges) > 0 && slices.ContainsFunc(plan.NewRanges, func(k bpf.RangeKey) bool { return r.ranges[k] > 0 })
}

// limit returns when no more than so many backends are to be removed. What is,
// has no room for others.
func (r *retiring) limit(entries int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.entries > entries {
		r.changed.Wait()
	}
}

// drain returns when nothing is still to be removed, and the writer knows.
func (r *retiring) drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue)+r.working > 0 {
		r.changed.Wait()
	}
}

func (r *retiring) run() {
	defer close(r.done)
	for {
		batch := r.take()
		if batch == nil {
			return
		}
		plans := make([]*nat.Plan, len(batch))
		for i, b := range batch {
			plans[i] = b.plan
		}
		r.mu.Lock()
		store := r.store
		r.mu.Unlock()
		err := nat.Retire(store, plans...)
		if err != nil { // the next planner that reads the table collects it
			r.log.Warn("what was replaced in the table is still there", "err", err)
		}
		r.gone(batch)
		r.freed(batch, err == nil)
		r.finish(batch)
	}
}

func (r *retiring) take() []retired {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) == 0 {
		if r.closed {
			return nil
		}
		r.changed.Wait()
	}
	batch := r.queue
	r.queue, r.working = nil, len(batch)
	return batch
}

// gone lets those go on who waited for what plans remove.
func (r *retiring) gone(batch []retired) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range batch {
		r.note(b.plan, -1)
	}
	r.changed.Broadcast()
}

func (r *retiring) finish(batch []retired) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.working = 0
	for _, b := range batch {
		r.entries -= backends(b.plan)
	}
	r.changed.Broadcast()
}

// backends is how many a plan removes.
func backends(plan *nat.Plan) (n int) {
	for _, set := range plan.OldSets {
		n += len(set.Backends)
	}
	return n
}

func (r *retiring) close() {
	r.mu.Lock()
	r.closed = true
	r.changed.Broadcast()
	r.mu.Unlock()
	<-r.done
}
