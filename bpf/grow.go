package bpf

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Grow makes the table that m would be with more room: new maps in place of
// those that are smaller than sizes says, empty and not pinned, and the others
// shared. A zero size stays as it is, and no map shrinks. What the new maps
// lack is the caller's to copy; then Stage pins them, then programs are attached
// that use them, and then Install gives them the pins. Killed before that, nothing has happened;
// in the middle of it, the pins lead to maps with the same content.
func (m *Maps) Grow(sizes Sizes) (*Maps, error) {
	spec, err := specs()
	if err != nil {
		return nil, err
	}
	sizes.apply(spec)
	grown := &Maps{byName: map[MapName]*ebpf.Map{}}
	var larger []MapName
	for _, name := range MapNames() {
		old := m.Map(name)
		want := spec.Maps[name.Kernel()]
		if sizes.gives(name) && want.MaxEntries > old.MaxEntries() {
			larger = append(larger, name)
			continue
		}
		if grown.byName[name], err = old.Clone(); err != nil {
			return nil, errors.Join(fmt.Errorf("share map %s: %w", name, err), grown.Close())
		}
	}
	if err := grown.create(larger, spec); err != nil {
		return nil, errors.Join(err, grown.Close())
	}
	grown.Created = larger
	return grown, nil
}

// gives reports whether a size is given for a map.
func (s Sizes) gives(name MapName) bool {
	switch name {
	case MapFrontend:
		return s.Frontends != 0
	case MapService, MapCounter:
		return s.Services != 0
	case MapBackend:
		return s.Backends != 0
	case MapRange:
		return s.Ranges != 0
	}
	return false
}

// growSuffix marks a pin that is about to take its place by a rename.
const growSuffix = "_new"

// Stage pins the maps that Grow created beside those that they take the place
// of: whatever may fail for lack of memory or rights fails here.
func (m *Maps) Stage(pins Pins) error {
	for _, name := range m.Created {
		next := pins.Map(name) + growSuffix
		if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
			return errors.Join(fmt.Errorf("remove left-over pin: %w", err), m.Unstage(pins))
		}
		if err := m.Map(name).Pin(next); err != nil {
			return errors.Join(fmt.Errorf("pin map: %w", err), m.Unstage(pins))
		}
	}
	return nil
}

// Unstage takes Stage back.
func (m *Maps) Unstage(pins Pins) error {
	var errs []error
	for _, name := range m.Created {
		if err := os.Remove(pins.Map(name) + growSuffix); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EISDIR) {
			errs = append(errs, fmt.Errorf("remove pin: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Install gives the maps that were staged the pins of those that they take the
// place of, all or none: on an error the pins lead to the former ones again.
func (m *Maps) Install(pins Pins, former *Maps) error {
	for i, name := range m.Created {
		err := os.Rename(pins.Map(name)+growSuffix, pins.Map(name))
		if err == nil {
			continue
		}
		errs := []error{fmt.Errorf("move pinned map into place: %w", err)}
		for _, done := range m.Created[:i] {
			errs = append(errs, former.repin(pins, done))
		}
		return errors.Join(errs...)
	}
	m.Created = nil
	return nil
}

// Repin has a pin lead to the map of m, whatever of ours it leads to now.
func (m *Maps) Repin(pins Pins, name MapName) error { return m.repin(pins, name) }

func (m *Maps) repin(pins Pins, name MapName) error {
	c, err := m.Map(name).Clone() // pinning a map that was opened by a pin would only move that
	if err != nil {
		return fmt.Errorf("pin map %s again: %w", name, err)
	}
	defer c.Close()
	next := pins.Map(name) + growSuffix
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove left-over pin: %w", err)
	}
	if err := c.Pin(next); err != nil {
		return fmt.Errorf("pin map %s again: %w", name, err)
	}
	if err := os.Rename(next, pins.Map(name)); err != nil {
		return errors.Join(fmt.Errorf("pin map %s again: %w", name, err), os.Remove(next))
	}
	return nil
}

// ReleaseTable closes the maps that Grow exchanges: what has grown out of them
// uses them no more. Those that all generations share stay open.
func (m *Maps) ReleaseTable() error {
	var errs []error
	for _, name := range []MapName{MapFrontend, MapService, MapBackend, MapRange, MapCounter} {
		if bm := m.byName[name]; bm != nil {
			errs = append(errs, bm.Close())
			delete(m.byName, name)
		}
	}
	return errors.Join(errs...)
}

// CopyCounters copies what a table has counted. What is counted meanwhile is lost.
func (m *Maps) CopyCounters(to *Maps) error {
	from, into := m.Map(MapCounter), to.Map(MapCounter)
	var index uint32
	var c Counters
	it := from.Iterate()
	for it.Next(&index, &c) {
		if c == (Counters{}) {
			continue
		}
		if err := into.Put(index, c); err != nil {
			return fmt.Errorf("copy counter %d: %w", index, err)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read counters: %w", err)
	}
	return nil
}
