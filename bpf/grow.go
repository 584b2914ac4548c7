package bpf

import (
	"errors"
	"fmt"
	"os"
	"slices"

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
	specs, err := specs(sizes)
	if err != nil {
		return nil, err
	}
	grown := &Maps{byName: map[MapName]*ebpf.Map{}}
	var larger []MapName
	for _, info := range mapTable {
		old := m.Map(info.Name)
		if info.entries(sizes) > old.MaxEntries() {
			larger = append(larger, info.Name)
			continue
		}
		if grown.byName[info.Name], err = old.Clone(); err != nil {
			return nil, errors.Join(fmt.Errorf("share map %s: %w", info.Name, err), grown.Close())
		}
	}
	if err := grown.create(larger, specs); err != nil {
		return nil, errors.Join(err, grown.Close())
	}
	for _, name := range larger { // one that the kernel has no memory for is made smaller (createMap)
		if has, had := grown.Map(name).MaxEntries(), m.Map(name).MaxEntries(); has <= had {
			return nil, errors.Join(fmt.Errorf("make map %s larger: the kernel gave %d entries in place of %d: %w", name, has, had, unix.ENOMEM), grown.Close())
		}
	}
	grown.Created = larger
	return grown, nil
}

// growSuffix marks a pin that is about to take its place by a rename.
const growSuffix = "_new"

// createdPins are the pins of the maps that Grow created.
func (m *Maps) createdPins(pins Pins, each func(name MapName, pin string)) {
	for _, name := range m.Created {
		for _, pin := range pins.MapPins(name) {
			each(name, pin)
		}
	}
}

// Stage pins the maps that Grow created beside those that they take the place
// of: whatever may fail for lack of memory or rights fails here.
func (m *Maps) Stage(pins Pins) error {
	var err error
	m.createdPins(pins, func(name MapName, pin string) {
		if err == nil {
			err = removePin(pin + growSuffix)
		}
		if err == nil {
			err = pinMap(m.Map(name), pin+growSuffix)
		}
	})
	if err != nil {
		return errors.Join(err, m.Unstage(pins))
	}
	return nil
}

// Unstage takes Stage back.
func (m *Maps) Unstage(pins Pins) error {
	var errs []error
	m.createdPins(pins, func(_ MapName, pin string) {
		if err := removePin(pin + growSuffix); err != nil && !errors.Is(err, unix.EISDIR) {
			errs = append(errs, fmt.Errorf("remove pin: %w", err))
		}
	})
	return errors.Join(errs...)
}

// Install gives the maps that were staged the pins of those that they take the
// place of, all or none: on an error the pins lead to the former ones again.
func (m *Maps) Install(pins Pins, former *Maps) error {
	var errs []error
	var installed []MapName
	m.createdPins(pins, func(name MapName, pin string) {
		if len(errs) > 0 {
			return
		}
		if err := os.Rename(pin+growSuffix, pin); err != nil {
			errs = append(errs, fmt.Errorf("move pinned map into place: %w", err))
			return
		}
		installed = append(installed, name)
	})
	if len(errs) == 0 {
		m.Created = nil
		return nil
	}
	for _, name := range slices.Compact(installed) {
		errs = append(errs, former.Repin(pins, name))
	}
	return errors.Join(errs...)
}

// Repin has the pins of a map lead to the map of m, whatever of ours they lead to now.
func (m *Maps) Repin(pins Pins, name MapName) error {
	for _, pin := range pins.MapPins(name) {
		if err := replacePin(m.Map(name), pin); err != nil {
			return fmt.Errorf("pin map %s again: %w", name, err)
		}
	}
	return nil
}

// ReleaseTable closes the maps that Grow exchanges: what has grown out of them
// uses them no more. Those of which there is one for all generations stay open.
func (m *Maps) ReleaseTable() error {
	var errs []error
	for _, info := range mapTable {
		if bm := m.byName[info.Name]; bm != nil && info.Entries != nil {
			errs = append(errs, bm.Close())
			delete(m.byName, info.Name)
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
