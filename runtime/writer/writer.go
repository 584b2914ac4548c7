package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/services"
)

// Store is a table that tells whether another writer allocated anything.
type Store interface {
	nat.Store
	// Generation is the highest set id that was ever given out.
	Generation() (uint64, error)
	// ResetCounters makes indexes count from zero, for their new services.
	ResetCounters(indexes []uint32) error
}

// Config is what a Writer needs.
type Config struct {
	Store Store
	// Lock takes the table's lock, which writers hold; the returned function releases it.
	Lock func(context.Context) (release func() error, err error)
	Log  *slog.Logger
	// Notify is called when there is reason to flush again, by a goroutine of the
	// Writer's: what was Deferred can be written, or the table has capacity for
	// Services that found none. It may not wait for the Writer.
	Notify func()
}

// Writer writes one table. Its methods may be called by any goroutine.
type Writer struct {
	cfg Config

	// work is held while the table is written, or its lock waited for. mu, taken after it, is never held during a system
	// call: to set or ask something never waits for the kernel.
	work sync.Mutex

	mu      sync.Mutex
	ports   map[services.PortKey]*port
	queue   queue
	ranges  *serviceRange
	nodes   *nodes
	planner *nat.Planner
	noted   uint64 // the table's generation as this writer left it
	status  Status
	writes  uint64          // plans that were begun to be carried out
	writing bool            // one of them isn't yet
	out     int             // ports that are not as they should be
	full    [shortParts]int // of them, those that found no capacity, by what they lack

	reclaimer *reclaimer
}

// port is one that is wanted.
type port struct {
	svc   *nat.Service // shared: never changed
	index uint32       // 0: it isn't in the table
	err   error        // why it isn't, or isn't as it should be
}

// New makes a Writer. Close ends it.
func New(cfg Config) *Writer {
	w := &Writer{cfg: cfg, ports: map[services.PortKey]*port{}, queue: queue{dirty: map[services.PortKey]bool{}}}
	w.reclaimer = newReclaimer(cfg.Store, cfg.Log, w.reclaimed)
	return w
}

// Close waits until what was replaced is removed.
func (w *Writer) Close() { w.reclaimer.close() }

// Set takes changes that belong together: a flush writes all of them, or none.
func (w *Writer) Set(changes []services.Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.set(changes)
}

func (w *Writer) set(changes []services.Change) {
	w.queue.order = nil
	for _, c := range changes {
		var stays map[services.PortKey]bool
		if len(c.Before) > 0 {
			stays = make(map[services.PortKey]bool, len(c.After))
		}
		for i := range c.After {
			key := c.After[i].Key
			if stays != nil {
				stays[key] = true
			}
			p := w.ports[key]
			if p == nil {
				p = &port{}
				w.ports[key] = p
			}
			p.svc = &c.After[i].Service
			w.queue.dirty[key] = true
		}
		for i := range c.Before {
			if key := c.Before[i].Key; !stays[key] {
				w.remove(key)
			}
		}
	}
}

func (w *Writer) remove(key services.PortKey) {
	p := w.ports[key]
	if p == nil {
		return
	}
	if p.index != 0 {
		w.queue.removed = append(w.queue.removed, p.index)
	}
	w.setErr(p, nil)
	delete(w.ports, key)
	delete(w.queue.dirty, key)
}

// SetStore makes the Writer write to another store, which holds the same.
func (w *Writer) SetStore(store Store) {
	w.work.Lock()
	defer w.work.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cfg.Store = store
	w.planner = nil
	w.reclaimer.setStore(store)
}

// Flush writes what was Set and isn't written, but for what is Deferred. What
// can't be written, for lack of capacity or because it makes no sense, is in
// Status and logged once; the rest is written. After an error the table is as it
// was, and the next flush tries all of it again.
func (w *Writer) Flush(ctx context.Context) error {
	w.work.Lock()
	defer w.work.Unlock()
	return w.locked(ctx, func() error {
		if err := w.current(); err != nil {
			return err
		}
		return w.write()
	})
}

// Redirect leads what the table has for an address to other backends, before
// anything was Set: for the API service, which everything else may come through.
// Each family gets the backends of its own, if there are any. After the first
// Flush it does nothing.
func (w *Writer) Redirect(ctx context.Context, frontends, backends []netip.AddrPort) error {
	w.work.Lock()
	defer w.work.Unlock()
	if w.adopted() {
		return nil
	}
	return w.locked(ctx, func() error {
		state, err := w.cfg.Store.Read()
		if err != nil {
			return err
		}
		p := nat.NewPlanner(state, nat.InitIndexes)
		for _, f := range frontends {
			fe, there := state.Frontends[bpf.FrontendKeyOf(f, bpf.TCP)]
			of := slices.DeleteFunc(slices.Clone(backends), func(b netip.AddrPort) bool { return b.Addr().Is4() != f.Addr().Is4() })
			if !there || len(of) == 0 {
				continue
			}
			if err := p.Replace(fe.Index, of); err != nil {
				return err
			}
		}
		plan := p.Take()
		if plan.Empty() {
			return nil
		}
		applied, err := nat.Apply(w.cfg.Store, plan)
		if err != nil {
			return err
		}
		return applied.Commit()
	})
}

// locked runs do with the table's lock.
func (w *Writer) locked(ctx context.Context, do func() error) error {
	release, err := w.cfg.Lock(ctx)
	if err != nil {
		return err
	}
	return errors.Join(do(), release())
}

// current ensures that the planner knows the table, which the init stage may have written to.
func (w *Writer) current() error {
	generation, err := w.cfg.Store.Generation()
	if err != nil {
		return err
	}
	if w.knows(generation) {
		return nil
	}
	w.reclaimer.drain() // the next planner doesn't know what the former ones still remove
	state, err := w.cfg.Store.Read()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.adopt(state)
	return nil
}

// knows reports whether the planner has the table as it is at a generation.
func (w *Writer) knows(generation uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.planner != nil && generation == w.noted
}

func (w *Writer) adopted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status.Adopted
}

// write plans what is queued, and carries it out.
func (w *Writer) write() error {
	w.reclaimer.limit(w.backlog())
	plan, fresh := w.plan()
	if plan == nil {
		return nil
	}
	if len(fresh) > 0 {
		if err := w.cfg.Store.ResetCounters(fresh); err != nil {
			w.cfg.Log.Warn("counters continue from a reused index", "services", len(fresh), "err", err)
		}
	}
	w.reclaimer.waitFor(plan)
	applied, err := nat.Apply(w.cfg.Store, plan)
	if err != nil {
		err = fmt.Errorf("write the table: %w", err)
	} else if takesOver(plan) {
		if err = applied.Commit(); err != nil {
			err = fmt.Errorf("take over what the init stage wrote: %w", err)
		}
	}
	w.wrote(plan, err)
	return err
}

// leastBacklog is what may always be waiting to be removed: small tables get more capacity.
const leastBacklog = 1024

// backlog is how many backends may be waiting to be removed before a write has to wait for that too. When changes come
// faster than grace periods end, Services would else find no capacity though they need no more than they had.
func (w *Writer) backlog() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(leastBacklog, w.planner.State().Capacity.Backends/4)
}

// wrote takes note of how a plan went.
func (w *Writer) wrote(plan *nat.Plan, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writing = false
	if err != nil {
		w.planner = nil // what the table holds is to be read again
		return
	}
	w.noted = max(w.noted, plan.Generation)
	w.status.Adopted = true
	w.status.Flushes++
	if takesOver(plan) {
		w.planner.Released(plan)
		return
	}
	w.reclaimer.add(plan, w.planner)
}

// reclaimed takes note that what plans replaced is gone, or, where that failed, that it stays.
func (w *Writer) reclaimed(plans []applied, ok bool) {
	w.mu.Lock()
	again := w.queue.deferred
	for _, a := range plans {
		if !ok || a.planner != w.planner {
			continue
		}
		a.planner.Released(a.plan)
		if w.out > 0 {
			again = true
			for key, p := range w.ports {
				if p.err != nil {
					w.queue.dirty[key] = true
				}
			}
		}
		if w.ranges != nil && w.ranges.err != nil {
			again = true
			w.ranges.replan()
		}
		if w.nodes != nil && w.nodes.err != nil {
			again = true
			w.nodes.replan()
		}
	}
	w.mu.Unlock()
	if again && w.cfg.Notify != nil {
		w.cfg.Notify()
	}
}
