package writer

import (
	"errors"
	"maps"
	"slices"

	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/runtime/services"
)

// plan is what write has to carry out, nil for nothing, and the indexes that are new in it.
func (w *Writer) plan() (plan *nat.Plan, fresh []uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = w.retiring.takingAway() && w.brings()
	if w.held {
		w.assignSettled()
	} else {
		w.assignAll()
	}
	w.forgetLost()
	w.assignRange()
	plan = w.planner.Take()
	fresh, w.fresh = w.fresh, nil
	if plan.Empty() {
		w.status.Adopted = true
		return nil, nil
	}
	w.writes++
	w.writing = true
	return plan, fresh
}

// takesOver reports whether a plan clears words of the init stage. Once the
// table's lock is released, that may use their indexes for others.
func takesOver(plan *nat.Plan) bool {
	return slices.ContainsFunc(plan.LastWords, func(c nat.WordChange) bool { return nat.InitIndexes.Contains(c.At / 2) })
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

// shortOf says for lack of what a port is out.
func shortOf(err error) Short {
	switch {
	case errors.Is(err, nat.ErrFrontendsFull):
		return ShortFrontends
	case errors.Is(err, nat.ErrBackendsFull):
		return ShortBackends
	case errors.Is(err, nat.ErrNoIndex):
		return ShortServices
	case errors.Is(err, nat.ErrRangesFull):
		return ShortRanges
	case errors.Is(err, nat.ErrFull):
		return ShortFrontends | ShortBackends
	}
	return 0
}

func isFull(err error) bool { return shortOf(err) != 0 }

func (w *Writer) assignAll() {
	for _, index := range w.gone {
		w.planner.Remove(index)
	}
	freed := len(w.gone) > 0
	w.gone = nil
	if len(w.order) != len(w.dirty) || slices.ContainsFunc(w.order, func(key services.PortKey) bool { return !w.dirty[key] }) {
		w.order = sortKeys(slices.Collect(maps.Keys(w.dirty)))
	}
	for _, key := range w.order {
		w.assign(key)
	}
	w.order, w.dirty = nil, map[services.PortKey]bool{} // a map that is cleared keeps its size, and each look at it costs that
	if freed {
		w.retryOut()
	}
}

func (w *Writer) assign(key services.PortKey) {
	p := w.ports[key]
	index, err := w.planner.Assign(p.index, p.svc)
	switch {
	case err == nil:
		if p.index == 0 {
			w.fresh = append(w.fresh, index)
		}
		if p.err != nil {
			w.cfg.Log.Info("a Service is as it should be again", "service", p.svc.Name)
		}
		p.index = index
		w.setErr(p, nil)
		return
	case p.err == nil || p.err.Error() != err.Error():
		w.cfg.Log.Error("a Service stays as it is in the table", "service", p.svc.Name, "there", p.index != 0, "err", err)
	}
	w.setErr(p, err)
}

// forgetLost takes the index from ports that could not be planned and whose
// frontends have all gone to others: another port may get it.
func (w *Writer) forgetLost() {
	if w.out == 0 {
		return
	}
	for _, p := range w.ports {
		if p.err != nil && p.index != 0 && !w.planner.Has(p.index) {
			p.index = 0
		}
	}
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

// retryOut gives those that found no room another try.
func (w *Writer) retryOut() {
	if w.out == 0 {
		return
	}
	var out []services.PortKey
	for key, p := range w.ports {
		if p.err != nil {
			out = append(out, key)
		}
	}
	for _, key := range sortKeys(out) {
		w.assign(key)
	}
}
