package nat

import (
	"errors"
	"fmt"
	"slices"

	"github.com/firsthop/firsthop/bpf"
)

// Applied is a plan that traffic sees already, and that can still be taken
// back. One of Commit and Rollback is to be called; if neither is (the process
// was killed), the next plan collects what is left over.
type Applied struct {
	store Store
	plan  *Plan
}

// Apply carries a plan out up to, but without, the removal of what it replaced.
// It waits for nothing but what leave and replacesAtNodes say. On an error everything is taken back, and the table is as it was.
func Apply(store Store, plan *Plan) (*Applied, error) {
	a := &Applied{store: store, plan: plan}
	if err := a.write(); err != nil {
		if undo := a.Rollback(); undo != nil {
			return nil, fmt.Errorf("%w; taking it back: %s", err, undo)
		}
		return nil, err
	}
	return a, nil
}

func (a *Applied) write() error {
	p, s := a.plan, a.store
	if p.Generation > 0 {
		if err := s.PutGeneration(p.Generation); err != nil {
			return err
		}
	}
	if keys, values := flatten(p.NewSets); len(keys) > 0 {
		if err := s.PutBackends(keys, values); err != nil {
			return fmt.Errorf("write %d backends: %w", len(keys), err)
		}
	}
	if len(p.NewSourceRanges) > 0 {
		if err := s.PutSourceRanges(p.NewSourceRanges); err != nil {
			return fmt.Errorf("write %d source ranges: %w", len(p.NewSourceRanges), err)
		}
	}
	leaving, changed, added := a.puts()
	if err := a.leave(leaving); err != nil {
		return err
	}
	if err := putStates(s, p.ServiceStates); err != nil {
		return err
	}
	if err := s.ChangeFrontends(split(changed)); err != nil {
		return err
	}
	if keys, values := split(added); len(keys) > 0 {
		if err := s.PutFrontends(keys, values); err != nil {
			return fmt.Errorf("write %d frontends: %w", len(keys), err)
		}
	}
	if p.replacesAtNodes() {
		if err := s.Synchronize(); err != nil {
			return err
		}
	}
	if keys, _ := split(p.Deletes); len(keys) > 0 {
		if err := s.DeleteFrontends(keys); err != nil {
			return fmt.Errorf("remove %d frontends: %w", len(keys), err)
		}
	}
	return nil
}

// leave has frontends stop using the state for local traffic before that changes, and waits for the programs that have
// read them as they were: where a Local policy had ended, the state led to all backends (see keepLocal), and is to lead to
// local ones now, for others. What such a frontend begins to use is for when the states are as it wants them.
func (a *Applied) leave(leaving []FrontendPut) error {
	if len(leaving) == 0 {
		return nil
	}
	if err := a.store.ChangeFrontends(split(leaving)); err != nil {
		return err
	}
	return a.store.Synchronize()
}

// puts are the frontends that stop using a state for local traffic which changes, the others that change, and those that
// come.
func (a *Applied) puts() (leaving, changed, added []FrontendPut) {
	if !slices.ContainsFunc(a.plan.Puts, func(p FrontendPut) bool { return p.Former != nil }) {
		return nil, nil, a.plan.Puts
	}
	states := make(map[uint32]bool, len(a.plan.ServiceStates))
	for _, w := range a.plan.ServiceStates {
		states[w.At] = true
	}
	for _, put := range a.plan.Puts {
		switch {
		case put.Former == nil:
			added = append(added, put)
		case put.Former.Index == put.Frontend.Index && put.Former.Flags&^put.Frontend.Flags&localFlags != 0 &&
			states[bpf.ServiceStateAt(put.Frontend.Index, true)]:
			first, then := put.split()
			leaving = append(leaving, first)
			if then != nil {
				changed = append(changed, *then)
			}
		default:
			changed = append(changed, put)
		}
	}
	return leaving, changed, added
}

// Commit waits until no program uses what the plan replaced any more (an RCU
// grace period, some 10 ms) and removes it: states that no frontend points to,
// source ranges, sets. The plan stays carried out if it fails: what is left over
// is collected by the next planner. It may run beside a later plan that brings
// no frontends and needs none of what goes.
func (a *Applied) Commit() error { return Reclaim(a.store, a.plan) }

// Reclaim is Commit for plans that were applied one after the other: they share one grace period.
func Reclaim(store Store, plans ...*Plan) error {
	var states []StateChange
	var ranges []bpf.SourceRangeKey
	var keys []bpf.BackendKey
	waits := false
	for _, p := range plans {
		old, _ := flatten(p.OldSets)
		states, ranges, keys = append(states, p.DeferredStates...), append(ranges, p.OldSourceRanges...), append(keys, old...)
		waits = waits || p.HasDeferred()
	}
	if !waits {
		return nil
	}
	if err := store.Synchronize(); err != nil {
		return fmt.Errorf("wait for programs that use what was replaced: %w", err)
	}
	if err := putStates(store, states); err != nil {
		return err
	}
	if len(ranges) > 0 {
		if err := store.DeleteSourceRanges(ranges); err != nil {
			return fmt.Errorf("remove %d source ranges: %w", len(ranges), err)
		}
	}
	if err := store.DeleteBackends(keys); err != nil {
		return fmt.Errorf("remove %d old backends: %w", len(keys), err)
	}
	return nil
}

// Rollback takes the plan back, in reverse order, and continues after an error.
// Set ids that were given out stay used.
func (a *Applied) Rollback() error {
	p, s := a.plan, a.store
	var errs []error
	if keys, values := split(p.Deletes); len(keys) > 0 {
		slices.Reverse(keys) // frontends before their marks
		slices.Reverse(values)
		errs = append(errs, s.PutFrontends(keys, values))
	}
	leaving, changed, added := a.puts()
	errs = append(errs, a.takeBackPuts(changed, added))
	errs = append(errs, putStates(s, inverse(p.ServiceStates)))
	if keys, _ := split(leaving); len(keys) > 0 {
		errs = append(errs, s.ChangeFrontends(keys, formers(leaving)))
	}
	if len(p.NewSourceRanges) > 0 {
		ranges := slices.Clone(p.NewSourceRanges)
		slices.Reverse(ranges) // as OldSourceRanges are ordered
		errs = append(errs, s.DeleteSourceRanges(ranges))
	}
	if keys, _ := flatten(p.NewSets); len(keys) > 0 {
		errs = append(errs, s.Synchronize(), s.DeleteBackends(keys))
	}
	return errors.Join(errs...)
}

// takeBackPuts removes the frontends that came, the last one first: a VIP's mark
// goes before its frontends. It restores those that were changed, and waits for
// the programs that go where they led meanwhile.
func (a *Applied) takeBackPuts(changed, added []FrontendPut) error {
	var errs []error
	for _, put := range slices.Backward(added) {
		errs = append(errs, a.store.DeleteFrontends([]bpf.FrontendKey{put.Key}))
	}
	if keys, _ := split(changed); len(keys) > 0 {
		errs = append(errs, a.store.ChangeFrontends(keys, formers(changed)), a.store.Synchronize())
	}
	return errors.Join(errs...)
}

// split is a change of a frontend that stops to use a state for local traffic: what is written before states change,
// and, where the frontend begins to use something too, what is written after that.
func (p FrontendPut) split() (first FrontendPut, then *FrontendPut) {
	if p.Frontend.Flags&^p.Former.Flags == 0 {
		return p, nil
	}
	first = p
	first.Frontend.Flags = p.Former.Flags &^ (localFlags &^ p.Frontend.Flags)
	return first, &FrontendPut{Key: p.Key, Frontend: p.Frontend, Former: &first.Frontend}
}

func formers(puts []FrontendPut) []bpf.Frontend {
	out := make([]bpf.Frontend, len(puts))
	for i, put := range puts {
		out[i] = *put.Former
	}
	return out
}

func putStates(s Store, changes []StateChange) error {
	if len(changes) == 0 {
		return nil
	}
	at, states := make([]uint32, len(changes)), make([]bpf.ServiceState, len(changes))
	for i, c := range changes {
		at[i], states[i] = c.At, c.To
	}
	if err := s.PutServiceStates(at, states); err != nil {
		return fmt.Errorf("switch services: %w", err)
	}
	return nil
}

func inverse(changes []StateChange) []StateChange {
	var out []StateChange
	for _, c := range slices.Backward(changes) {
		out = append(out, StateChange{At: c.At, From: c.To, To: c.From})
	}
	return out
}

func flatten(sets []Set) (keys []bpf.BackendKey, values []bpf.Backend) {
	n := 0
	for _, set := range sets {
		n += len(set.Backends)
	}
	if n > 0 {
		keys, values = make([]bpf.BackendKey, 0, n), make([]bpf.Backend, 0, n)
	}
	for _, set := range sets {
		for slot, be := range set.Backends {
			keys = append(keys, bpf.BackendKey{Set: set.ID, Slot: slot})
			values = append(values, be)
		}
	}
	return keys, values
}

func split(puts []FrontendPut) (keys []bpf.FrontendKey, values []bpf.Frontend) {
	if len(puts) > 0 {
		keys, values = make([]bpf.FrontendKey, 0, len(puts)), make([]bpf.Frontend, 0, len(puts))
	}
	for _, p := range puts {
		keys = append(keys, p.Key)
		values = append(values, p.Frontend)
	}
	return keys, values
}
