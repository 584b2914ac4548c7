package writer

import (
	"context"
	"maps"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

// Verify reads the whole table and mends what others changed in it. It returns
// whether there was anything. Flushes go on meanwhile, but for the mending; where
// they come so often that the table is never read between two, it is read while
// they wait.
func (w *Writer) Verify(ctx context.Context) (mended bool, err error) {
	for range 3 {
		whole, quiet, err := w.look()
		if err != nil || whole {
			return false, err
		}
		if quiet {
			break
		}
	}
	w.work.Lock()
	defer w.work.Unlock()
	err = w.locked(ctx, func() error {
		if err := w.current(); err != nil {
			return err
		}
		if !w.retiring.pending() { // what is being removed is not what others changed
			now, err := w.cfg.Store.Read()
			if err != nil {
				return err
			}
			mended = w.compare(now)
		}
		return w.write()
	})
	return mended, err
}

// compare makes the planner start from what the table holds where that is not what it should be.
func (w *Writer) compare(now *nat.State) (differs bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if same(w.planner.State(), now) {
		return false
	}
	w.reload(now)
	w.status.Repairs++
	w.cfg.Log.Warn("the table was changed by others: mending it")
	return true
}

// look reads the table beside flushes. whole says that it is as it should be, or
// not this writer's yet; quiet that nothing was written meanwhile, so that what
// differs does so for good.
func (w *Writer) look() (whole, quiet bool, err error) {
	w.mu.Lock()
	store, seen, adopted := w.cfg.Store, w.writes, w.status.Adopted
	busy := w.writing || w.retiring.pending()
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
	still := func() bool {
		return !busy && w.writes == seen && planner != nil && w.planner == planner && !w.retiring.pending()
	}
	if !still() {
		return false, false, nil
	}
	compared := 0
	is, whole := sameWhile(planner.State(), now, func() bool {
		if compared++; compared%lookPart != 0 {
			return true
		}
		w.mu.Unlock() // to compare all of it takes longer than a change may wait
		w.mu.Lock()
		return still()
	})
	return is && whole, whole, nil
}

// lookPart is how many entries look compares before it lets others have the lock.
const lookPart = 512

// same compares what two states mean; an unused generation is no difference.
func same(a, b *nat.State) bool {
	is, _ := sameWhile(a, b, func() bool { return true })
	return is
}

// sameWhile is same, which asks before each entry whether to go on; whole says that it did to the end, or to a difference.
func sameWhile(a, b *nat.State, goOn func() bool) (is, whole bool) {
	if len(a.Frontends) != len(b.Frontends) || len(a.Words) != len(b.Words) || len(a.Ranges) != len(b.Ranges) || len(a.Sets) != len(b.Sets) {
		return false, true
	}
	is, whole = equalWhile(a.Frontends, b.Frontends, func(x, y bpf.Frontend) bool { return x == y }, goOn)
	if is && whole {
		is, whole = equalWhile(a.Words, b.Words, func(x, y bpf.Word) bool { return x == y }, goOn)
	}
	if is && whole {
		is, whole = equalWhile(a.Ranges, b.Ranges, func(x, y bool) bool { return x == y }, goOn)
	}
	if is && whole {
		is, whole = equalWhile(a.Sets, b.Sets, maps.Equal[map[uint32]bpf.Backend], goOn)
	}
	return is, whole
}

// equalWhile compares two maps of one length. Only b is looked through, as a may change while goOn is asked.
func equalWhile[K comparable, V any](a, b map[K]V, equal func(V, V) bool, goOn func() bool) (is, whole bool) {
	for k, y := range b {
		if !goOn() {
			return false, false
		}
		if x, there := a[k]; !there || !equal(x, y) {
			return false, true
		}
	}
	return true, true
}
