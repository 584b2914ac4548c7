package writer

import (
	"maps"
	"slices"
)

// Held reports whether the last flush left something for the next: frontends that
// are to come, while programs may use others that went, and whatever else is to
// come or go. Endpoints don't wait for that. See Config.Room.
func (w *Writer) Held() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held
}

// brings reports whether a port that changed has a frontend that isn't there.
func (w *Writer) brings() bool {
	for key := range w.dirty {
		if w.planner.Lacks(w.ports[key].svc) {
			return true
		}
	}
	return false
}

// assignSettled plans the changes for which no frontend comes, goes or gets
// another index. The others are of one piece: what goes with one may come with
// another.
func (w *Writer) assignSettled() {
	for _, key := range sortKeys(slices.Collect(maps.Keys(w.dirty))) {
		if p := w.ports[key]; p.index != 0 && w.planner.Settled(p.index, p.svc) {
			w.assign(key)
			delete(w.dirty, key)
		}
	}
}

// freed takes note that what plans replaced is gone, or, where that failed, that it will not go.
func (w *Writer) freed(plans []retired, ok bool) {
	w.mu.Lock()
	again := w.held
	for _, r := range plans {
		if !ok || r.planner != w.planner {
			continue
		}
		r.planner.Freed(r.plan)
		if w.out > 0 {
			again = true
			w.dirtyOut()
		}
		if w.ranges != nil && w.ranges.err != nil {
			again = true
			w.ranges.again()
		}
	}
	w.mu.Unlock()
	if again && w.cfg.Room != nil {
		w.cfg.Room()
	}
}

// dirtyOut lets the next flush try those again that are not as they should be.
func (w *Writer) dirtyOut() {
	for key, p := range w.ports {
		if p.err != nil {
			w.dirty[key] = true
		}
	}
}
