package writer

import (
	"log/slog"
	"slices"
	"sync"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

// reclaimer removes what plans have replaced, after a grace period, beside the
// writer: the next change need not wait for it. One grace period does for all
// plans that came before it began.
type reclaimer struct {
	log       *slog.Logger
	reclaimed func(plans []applied, ok bool)

	mu               sync.Mutex
	changed          *sync.Cond
	store            nat.Store
	waiting, running replaced // the latter while a grace period is waited for
	closed           bool
	done             chan struct{}
}

// replaced is what plans that share a grace period have replaced.
type replaced struct {
	plans     []applied
	frontends bool // some went
	words     map[uint32]bool
	ranges    map[bpf.SourceRangeKey]bool
	backends  int
}

// applied is a plan that was carried out, and who made it.
type applied struct {
	plan    *nat.Plan
	planner *nat.Planner
}

func (r *replaced) add(a applied) {
	if r.plans == nil {
		r.words, r.ranges = map[uint32]bool{}, map[bpf.SourceRangeKey]bool{}
	}
	r.plans = append(r.plans, a)
	r.frontends = r.frontends || len(a.plan.Deletes) > 0
	for _, w := range a.plan.DeferredStates {
		r.words[w.At] = true
	}
	for _, k := range a.plan.OldSourceRanges {
		r.ranges[k] = true
	}
	for _, set := range a.plan.OldSets {
		r.backends += len(set.Backends)
	}
}

// conflicts reports whether a plan brings back what is yet to be removed, or
// leads frontends there: a state that is to be cleared is another Service's until then.
func (r *replaced) conflicts(plan *nat.Plan) bool {
	leads := func(put nat.FrontendPut) bool {
		leadsTo := func(local bool) bool {
			return put.Frontend.Uses(local) && r.words[bpf.ServiceStateAt(put.Frontend.Index, local)]
		}
		return leadsTo(false) || leadsTo(true)
	}
	return len(r.words) > 0 && slices.ContainsFunc(plan.ServiceStates, func(w nat.StateChange) bool { return r.words[w.At] }) ||
		len(r.words) > 0 && slices.ContainsFunc(plan.Puts, leads) ||
		len(r.ranges) > 0 && slices.ContainsFunc(plan.NewSourceRanges, func(k bpf.SourceRangeKey) bool { return r.ranges[k] })
}

func newReclaimer(store nat.Store, log *slog.Logger, reclaimed func(plans []applied, ok bool)) *reclaimer {
	r := &reclaimer{store: store, log: log, reclaimed: reclaimed, done: make(chan struct{})}
	r.changed = sync.NewCond(&r.mu)
	go r.run()
	return r
}

// setStore changes where plans are carried out that are added from now on. Those
// before are of a table that goes as a whole.
func (r *reclaimer) setStore(store nat.Store) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.store = store
}

func (r *reclaimer) add(plan *nat.Plan, planner *nat.Planner) {
	if !plan.HasDeferred() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting.add(applied{plan, planner})
	r.changed.Broadcast()
}

// pending reports whether anything is still to be removed.
func (r *reclaimer) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unfinished()
}

func (r *reclaimer) unfinished() bool { return len(r.waiting.plans)+len(r.running.plans) > 0 }

// takingAway reports whether programs may use frontends that went.
func (r *reclaimer) takingAway() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting.frontends || r.running.frontends
}

// waitWhile returns when a condition no longer holds.
func (r *reclaimer) waitWhile(holds func() bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for holds() {
		r.changed.Wait()
	}
}

// waitFor returns when a plan may be carried out: one that adds frontends when no
// program uses any that went, as their memory may then hold others; one that
// conflicts with earlier ones when these are finished.
func (r *reclaimer) waitFor(plan *nat.Plan) {
	r.waitWhile(func() bool {
		return (r.waiting.frontends || r.running.frontends) && plan.AddsFrontends() || r.waiting.conflicts(plan) || r.running.conflicts(plan)
	})
}

// limit returns when no more than so many backends are to be removed: they take capacity from others.
func (r *reclaimer) limit(backends int) {
	r.waitWhile(func() bool { return r.waiting.backends+r.running.backends > backends })
}

// drain returns when nothing is still to be removed, and the writer knows.
func (r *reclaimer) drain() { r.waitWhile(r.unfinished) }

func (r *reclaimer) run() {
	defer close(r.done)
	for {
		store, batch := r.next()
		if batch == nil {
			return
		}
		plans := make([]*nat.Plan, len(batch))
		for i, a := range batch {
			plans[i] = a.plan
		}
		err := nat.Reclaim(store, plans...)
		if err != nil { // the next planner that reads the table collects it
			r.log.Warn("what was replaced in the table is still there", "err", err)
		}
		r.finish(func() { r.running.frontends, r.running.words, r.running.ranges = false, nil, nil })
		r.reclaimed(batch, err == nil)
		r.finish(func() { r.running = replaced{} })
	}
}

// next takes all that waits, for one grace period; nil: the reclaimer is closed.
func (r *reclaimer) next() (nat.Store, []applied) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.waiting.plans) == 0 && !r.closed {
		r.changed.Wait()
	}
	r.running, r.waiting = r.waiting, replaced{}
	return r.store, r.running.plans
}

// finish lets those continue who waited for what is done now.
func (r *reclaimer) finish(done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	done()
	r.changed.Broadcast()
}

func (r *reclaimer) close() {
	r.finish(func() { r.closed = true })
	<-r.done
}
