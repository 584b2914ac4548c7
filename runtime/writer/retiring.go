package writer

import (
	"log/slog"
	"sync"

	"github.com/firsthop/firsthop/bpf/nat"
)

// retiring removes what plans have replaced, after a grace period, beside the
// writer: the next change need not wait for it. One grace period does for all
// plans that came before it began.
type retiring struct {
	store nat.Store
	log   *slog.Logger
	freed func(*nat.Plan, *nat.Planner)

	mu      sync.Mutex
	changed *sync.Cond
	queue   []retired
	working int // plans that a grace period is waited for
	deletes int // plans in queue or at work that took frontends away
	closed  bool
	done    chan struct{}
	telling sync.WaitGroup // those who tell what is gone
}

type retired struct {
	applied *nat.Applied
	plan    *nat.Plan
	planner *nat.Planner
}

func newRetiring(store nat.Store, log *slog.Logger, freed func(*nat.Plan, *nat.Planner)) *retiring {
	r := &retiring{store: store, log: log, freed: freed, done: make(chan struct{})}
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

func (r *retiring) add(applied *nat.Applied, plan *nat.Plan, planner *nat.Planner) {
	if len(plan.OldSets)+len(plan.Deletes)+len(plan.OldRanges) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = append(r.queue, retired{applied, plan, planner})
	if len(plan.Deletes) > 0 {
		r.deletes++
	}
	r.changed.Broadcast()
}

// pending reports whether anything is still to be removed.
func (r *retiring) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.queue)+r.working > 0
}

// waitForFrontends returns when no program uses a frontend that went: its memory
// may then hold another.
func (r *retiring) waitForFrontends() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.deletes > 0 {
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
		r.finish(batch)
		if err != nil {
			continue
		}
		// Not here: the writer may hold its own lock while it waits for frontends that are still to be taken away.
		r.telling.Go(func() {
			for _, b := range batch {
				r.freed(b.plan, b.planner)
			}
		})
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

func (r *retiring) finish(batch []retired) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.working = 0
	for _, b := range batch {
		if len(b.plan.Deletes) > 0 {
			r.deletes--
		}
	}
	r.changed.Broadcast()
}

func (r *retiring) close() {
	r.mu.Lock()
	r.closed = true
	r.changed.Broadcast()
	r.mu.Unlock()
	<-r.done
	r.telling.Wait()
}
