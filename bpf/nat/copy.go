package nat

import (
	"maps"
	"slices"
)

// Fill writes a state into a table of which no program uses what it writes.
func Fill(store Store, s *State) error {
	if err := store.PutGeneration(s.Generation); err != nil {
		return err
	}
	if err := store.PutBackends(flatten(sortedSets(s.Sets))); err != nil {
		return err
	}
	at := slices.Collect(maps.Keys(s.ServiceStates))
	if err := store.PutServiceStates(at, valuesOf(s.ServiceStates, at)); err != nil {
		return err
	}
	if err := store.PutSourceRanges(slices.Collect(maps.Keys(s.SourceRanges))); err != nil {
		return err
	}
	keys := slices.Collect(maps.Keys(s.Frontends))
	return store.PutFrontends(keys, valuesOf(s.Frontends, keys))
}

func valuesOf[K comparable, V any](m map[K]V, keys []K) []V {
	values := make([]V, len(keys))
	for i, k := range keys {
		values[i] = m[k]
	}
	return values
}
