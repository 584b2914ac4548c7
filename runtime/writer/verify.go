package writer

import (
	"context"
	"iter"
	"maps"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

// Verify reads the whole table and repairs what others changed in it. It returns
// whether there was anything. Flushes continue meanwhile, but for the repair;
// where they come so often that the table is never read between two, it is read
// while they wait.
func (w *Writer) Verify(ctx context.Context) (repaired bool, err error) {
	for range 3 {
		same, sure, err := w.look()
		if err != nil || same {
			return false, err
		}
		if sure {
			break
		}
	}
	w.work.Lock()
	defer w.work.Unlock()
	err = w.locked(ctx, func() error {
		if err := w.current(); err != nil {
			return err
		}
		if !w.reclaimer.pending() { // what is being removed is not what others changed
			now, err := w.cfg.Store.Read()
			if err != nil {
				return err
			}
			repaired = w.adoptChanged(now)
		}
		return w.write()
	})
	return repaired, err
}

// adoptChanged adopts the table where it is not what it should be.
func (w *Writer) adoptChanged(now *nat.State) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if same(w.planner.State(), now) {
		return false
	}
	w.adopt(now)
	w.status.Repairs++
	w.cfg.Log.Warn("the table was changed by others: repairing it")
	return true
}

// lookPart is how many entries look compares before it lets others have the lock.
const lookPart = 512

// look reads the table beside flushes, and reports whether it is as it should be,
// or not this writer's yet. It is sure only if nothing was written meanwhile.
func (w *Writer) look() (same, sure bool, err error) {
	w.mu.Lock()
	store, seen, adopted := w.cfg.Store, w.writes, w.status.Adopted
	busy := w.writing || w.reclaimer.pending()
	w.mu.Unlock()
	if !adopted {
		return true, true, nil
	}
	now, err := store.Read()
	if err != nil {
		return false, false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	planner := w.planner
	quiet := func() bool {
		return !busy && w.writes == seen && planner != nil && w.planner == planner && !w.reclaimer.pending()
	}
	if !quiet() {
		return false, false, nil
	}
	compared := 0
	for equal := range compare(planner.State(), now) {
		if !equal {
			return false, true, nil
		}
		if compared++; compared%lookPart == 0 { // to compare all of it takes longer than a change may wait
			w.mu.Unlock()
			w.mu.Lock()
			if !quiet() {
				return false, false, nil
			}
		}
	}
	return true, true, nil
}

// same compares what two states mean; an unused generation is no difference.
func same(a, b *nat.State) bool {
	for equal := range compare(a, b) {
		if !equal {
			return false
		}
	}
	return true
}

// compare yields, for one entry after the other, whether both states have it. It
// ranges over b only: a may change in between.
func compare(a, b *nat.State) iter.Seq[bool] {
	return func(yield func(bool) bool) {
		if len(a.Frontends) != len(b.Frontends) || len(a.ServiceStates) != len(b.ServiceStates) || len(a.SourceRanges) != len(b.SourceRanges) || len(a.Sets) != len(b.Sets) {
			yield(false)
			return
		}
		_ = compareMaps(a.Frontends, b.Frontends, func(x, y bpf.Frontend) bool { return x == y }, yield) &&
			compareMaps(a.ServiceStates, b.ServiceStates, func(x, y bpf.ServiceState) bool { return x == y }, yield) &&
			compareMaps(a.SourceRanges, b.SourceRanges, func(x, y bool) bool { return x == y }, yield) &&
			compareMaps(a.Sets, b.Sets, maps.Equal[map[uint32]bpf.Backend], yield)
	}
}

func compareMaps[K comparable, V any](a, b map[K]V, equal func(V, V) bool, yield func(bool) bool) bool {
	for k, y := range b {
		x, there := a[k]
		if !yield(there && equal(x, y)) {
			return false
		}
	}
	return true
}
