package nat

import (
	"errors"
	"fmt"
	"maps"

	"github.com/firsthop/firsthop/bpf"
)

// ErrFull is what a Fake says when it has no room; the kernel's maps say E2BIG.
var ErrFull = errors.New("table full")

// Fake is a table in memory that behaves as the kernel's does: it can be full,
// it can fail, and Observe sees it after each single write, as traffic would.
// Not safe for concurrent use.
type Fake struct {
	state        *State
	MaxBackends  int          // 0: no limit
	MaxFrontends int          // 0: no limit
	FailAfter    int          // the write after this many fails once; 0: never
	Observe      func(*State) // called after each write
	Writes       int          // writes done
	Graces       int          // times that Synchronize was called
}

var _ Store = (*Fake)(nil)

// NewFake makes an empty table with room for services indexes.
func NewFake(services uint32) *Fake { return &Fake{state: NewState(services)} }

// Read implements Store.
func (f *Fake) Read() (*State, error) {
	c := f.state.clone()
	for id, set := range c.Sets {
		c.Sets[id] = maps.Clone(set)
	}
	c.Capacity = Capacity{Frontends: f.MaxFrontends, Backends: f.MaxBackends}
	return c, nil
}

func (f *Fake) write(do func() error) error {
	if f.FailAfter > 0 && f.Writes == f.FailAfter {
		f.FailAfter = 0
		return fmt.Errorf("write %d fails", f.Writes)
	}
	f.Writes++
	if err := do(); err != nil {
		return err
	}
	if f.Observe != nil {
		f.Observe(f.state)
	}
	return nil
}

// Generation is the highest set id that any writer ever gave out.
func (f *Fake) Generation() (uint64, error) { return f.state.Generation, nil }

// ResetCounters makes service indexes count from zero. A Fake has no traffic to count.
func (f *Fake) ResetCounters([]uint32) error { return nil }

// PutGeneration implements Store.
func (f *Fake) PutGeneration(g uint64) error {
	return f.write(func() error { f.state.Generation = g; return nil })
}

// each does one write for each element.
func each[T any](f *Fake, list []T, do func(i int, x T) error) error {
	for i, x := range list {
		if err := f.write(func() error { return do(i, x) }); err != nil {
			return err
		}
	}
	return nil
}

// PutBackends implements Store.
func (f *Fake) PutBackends(keys []bpf.BackendKey, values []bpf.Backend) error {
	return each(f, keys, func(i int, k bpf.BackendKey) error {
		if f.MaxBackends > 0 && f.count() >= f.MaxBackends {
			return ErrFull
		}
		if f.state.Sets[k.Set] == nil {
			f.state.Sets[k.Set] = map[uint32]bpf.Backend{}
		}
		f.state.Sets[k.Set][k.Slot] = values[i]
		return nil
	})
}

func (f *Fake) count() int {
	n := 0
	for _, set := range f.state.Sets {
		n += len(set)
	}
	return n
}

// DeleteBackends implements Store.
func (f *Fake) DeleteBackends(keys []bpf.BackendKey) error {
	return each(f, keys, func(_ int, k bpf.BackendKey) error {
		delete(f.state.Sets[k.Set], k.Slot)
		if len(f.state.Sets[k.Set]) == 0 {
			delete(f.state.Sets, k.Set)
		}
		return nil
	})
}

// PutFrontends implements Store.
func (f *Fake) PutFrontends(keys []bpf.FrontendKey, values []bpf.Frontend) error {
	return each(f, keys, func(i int, k bpf.FrontendKey) error {
		_, there := f.state.Frontends[k]
		if !there && f.MaxFrontends > 0 && len(f.state.Frontends) >= f.MaxFrontends {
			return ErrFull
		}
		f.state.Frontends[k] = values[i]
		return nil
	})
}

// ChangeFrontends implements Store.
func (f *Fake) ChangeFrontends(keys []bpf.FrontendKey, values []bpf.Frontend) error {
	return each(f, keys, func(i int, k bpf.FrontendKey) error {
		if _, there := f.state.Frontends[k]; !there {
			return fmt.Errorf("change frontend %v: %w", k, errGone)
		}
		f.state.Frontends[k] = values[i]
		return nil
	})
}

// DeleteFrontends implements Store.
func (f *Fake) DeleteFrontends(keys []bpf.FrontendKey) error {
	return each(f, keys, func(_ int, k bpf.FrontendKey) error { delete(f.state.Frontends, k); return nil })
}

// PutSourceRanges implements Store.
func (f *Fake) PutSourceRanges(keys []bpf.SourceRangeKey) error {
	return each(f, keys, func(_ int, k bpf.SourceRangeKey) error { f.state.SourceRanges[k] = true; return nil })
}

// DeleteSourceRanges implements Store.
func (f *Fake) DeleteSourceRanges(keys []bpf.SourceRangeKey) error {
	return each(f, keys, func(_ int, k bpf.SourceRangeKey) error { delete(f.state.SourceRanges, k); return nil })
}

// PutServiceStates implements Store.
func (f *Fake) PutServiceStates(at []uint32, states []bpf.ServiceState) error {
	return each(f, at, func(i int, at uint32) error {
		if at >= 2*f.state.Services {
			return fmt.Errorf("state %d is past the end of the array", at)
		}
		if states[i] == 0 {
			delete(f.state.ServiceStates, at)
		} else {
			f.state.ServiceStates[at] = states[i]
		}
		return nil
	})
}

// Synchronize implements Store. In memory, nobody is held up.
func (f *Fake) Synchronize() error {
	f.Graces++
	return nil
}
