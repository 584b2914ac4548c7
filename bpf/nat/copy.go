package nat

import (
	"maps"
	"slices"

	"github.com/firsthop/firsthop/bpf"
)

// Fill writes a state into a table of which no program uses what it writes.
func Fill(store Store, s *State) error {
	if err := store.PutGeneration(s.Generation); err != nil {
		return err
	}
	var backendKeys []bpf.BackendKey
	var backends []bpf.Backend
	for id, set := range s.Sets {
		for slot, be := range set {
			backendKeys = append(backendKeys, bpf.BackendKey{Set: id, Slot: slot})
			backends = append(backends, be)
		}
	}
	var frontendKeys []bpf.FrontendKey
	var frontends []bpf.Frontend
	for k, fe := range s.Frontends {
		frontendKeys = append(frontendKeys, k)
		frontends = append(frontends, fe)
	}
	if err := store.PutBackends(backendKeys, backends); err != nil {
		return err
	}
	at, states := make([]uint32, 0, len(s.ServiceStates)), make([]bpf.ServiceState, 0, len(s.ServiceStates))
	for place, w := range s.ServiceStates {
		at, states = append(at, place), append(states, w)
	}
	if err := store.PutServiceStates(at, states); err != nil {
		return err
	}
	if err := store.PutSourceRanges(slices.Collect(maps.Keys(s.SourceRanges))); err != nil {
		return err
	}
	return store.PutFrontends(frontendKeys, frontends)
}
