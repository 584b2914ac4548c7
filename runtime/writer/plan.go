package writer

import (
	"errors"
	"maps"
	"slices"

	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/services"
)

// queue is what is to be written: the only one between an event and a write. A
// flush takes all of it, however much has come since the last one.
//
// Frontends that come must not be written while programs may use others that
// went, as they may get their memory. Until the grace period is over they are
// deferred, with everything else that adds, removes or moves frontends: what one
// port gives up, another may take. Endpoints never wait for that.
type queue struct {
	dirty    map[services.PortKey]bool // ports that may not be in the table as they are wanted
	removed  []uint32                  // indexes of ports that are no longer wanted
	order    []services.PortKey        // all dirty ports, sorted; nil: they are yet to be sorted
	deferred bool                      // the last flush left something
}

// Deferred reports whether the last flush left something for the next. See Config.Notify.
func (w *Writer) Deferred() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.queue.deferred
}

// Pending reports whether a flush would have something to look at.
func (w *Writer) Pending() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue.dirty)+len(w.queue.removed) > 0 || w.ranges != nil && !w.ranges.planned || w.nodes != nil && !w.nodes.planned
}

// plan returns what write has to carry out, nil for nothing, and the indexes that are new in it.
func (w *Writer) plan() (plan *nat.Plan, fresh []uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := &w.queue
	keys := q.order
	if keys == nil {
		keys = sorted(slices.Collect(maps.Keys(q.dirty)))
	}
	q.order = nil
	missing := func(key services.PortKey) bool { return w.planner.Missing(*w.ports[key].svc) }
	q.deferred = w.reclaimer.takingAway() && (w.addsNodes() || slices.ContainsFunc(keys, missing))
	if q.deferred {
		keys = slices.DeleteFunc(keys, func(key services.PortKey) bool {
			p := w.ports[key]
			return p.index == 0 || !w.planner.UpToDate(p.index, *p.svc)
		})
	} else {
		for _, index := range q.removed {
			w.planner.Remove(index)
		}
		q.removed = nil
	}
	for _, key := range keys {
		fresh = w.assign(key, fresh)
		delete(q.dirty, key)
	}
	if len(q.dirty) == 0 {
		q.dirty = map[services.PortKey]bool{} // a map that is emptied keeps its size, and each look at it costs that
	}
	w.releaseIndexes()
	if !q.deferred { // ports that are served at nodes instead of elsewhere wait, too
		w.planNodes()
	}
	w.planRange()
	plan = w.planner.Take()
	if plan.Empty() {
		w.status.Adopted = true
		return nil, nil
	}
	w.writes++
	w.writing = true
	return plan, fresh
}

// assign plans a port. It adds its index to fresh if that is new.
func (w *Writer) assign(key services.PortKey, fresh []uint32) []uint32 {
	p := w.ports[key]
	index, err := w.planner.Assign(p.index, *p.svc)
	switch {
	case err == nil:
		if p.index == 0 {
			fresh = append(fresh, index)
		}
		if p.err != nil {
			w.cfg.Log.Info("a Service is as it should be again", "service", p.svc.Name)
		}
		p.index = index
	case p.err == nil || p.err.Error() != err.Error():
		w.cfg.Log.Error("a Service stays as it is in the table", "service", p.svc.Name, "there", p.index != 0, "err", err)
	}
	w.setErr(p, err)
	return fresh
}

// releaseIndexes takes the index from ports that could not be planned and whose
// frontends have all gone to others: another port may get it.
func (w *Writer) releaseIndexes() {
	if w.out == 0 {
		return
	}
	for _, p := range w.ports {
		if p.err != nil && p.index != 0 && !w.planner.Has(p.index) {
			p.index = 0
		}
	}
}

// Out are the ports that are not in the table as they are wanted, sorted.
func (w *Writer) Out() []services.PortKey {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.outOfTable()
}

// outOfTable are the ports that are not as they should be, sorted.
func (w *Writer) outOfTable() (out []services.PortKey) {
	if w.out == 0 {
		return nil
	}
	for key, p := range w.ports {
		if p.err != nil {
			out = append(out, key)
		}
	}
	return sorted(out)
}

// takesOver reports whether a plan clears states of the init stage. Once the
// table's lock is released, that may use their indexes for others.
func takesOver(plan *nat.Plan) bool {
	return slices.ContainsFunc(plan.DeferredStates, func(c nat.StateChange) bool { return nat.InitIndexes.Contains(c.At / 2) })
}

// Short says which parts of a table have no capacity left for what is wanted.
// Zero: all of it is in.
type Short uint8

// The parts.
const (
	ShortFrontends Short = 1 << iota
	ShortBackends
	ShortServices
	ShortRanges
	shortParts = 4
)

// Has reports whether a part is among them.
func (s Short) Has(part Short) bool { return s&part != 0 }

// shortOf returns the parts that an error of the planner names.
func shortOf(err error) Short {
	switch {
	case errors.Is(err, nat.ErrFrontendsFull):
		return ShortFrontends
	case errors.Is(err, nat.ErrBackendsFull):
		return ShortBackends
	case errors.Is(err, nat.ErrNoIndex):
		return ShortServices
	case errors.Is(err, nat.ErrSourceRangesFull):
		return ShortRanges
	case errors.Is(err, nat.ErrFull):
		return ShortFrontends | ShortBackends
	}
	return 0
}

func (w *Writer) setErr(p *port, err error) {
	count := func(err error, by int) {
		if err != nil {
			w.out += by
		}
		for i := range shortParts {
			if shortOf(err).Has(1 << i) {
				w.full[i] += by
			}
		}
	}
	count(p.err, -1)
	count(err, +1)
	p.err = err
}
