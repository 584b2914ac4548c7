package bpf

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
)

// RepinMaps pins those maps of running programs that have lost their pins: a
// table that the programs don't read would be of no use, and to seed it a
// gap in service until they are exchanged. progs are programs of ours.
func RepinMaps(pins Pins, progs []*ebpf.Program) ([]MapName, error) {
	spec, err := specs()
	if err != nil {
		return nil, err
	}
	var repinned []MapName
	for _, p := range progs {
		info, err := p.Info()
		if err != nil {
			return repinned, fmt.Errorf("read program info: %w", err)
		}
		ids, _ := info.MapIDs()
		for _, id := range ids {
			name, err := repinMap(pins, id, spec)
			if err != nil {
				return repinned, err
			}
			if name != "" {
				repinned = append(repinned, name)
			}
		}
	}
	return repinned, nil
}

// repinMap pins the map with an id if it is one of a table and its place is
// free; else it gives "".
func repinMap(pins Pins, id ebpf.MapID, spec *ebpf.CollectionSpec) (MapName, error) {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return "", fmt.Errorf("open map %d: %w", id, err)
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return "", fmt.Errorf("read info of map %d: %w", id, err)
	}
	for _, name := range MapNames() {
		want := spec.Maps[name.Kernel()]
		if info.Name != name.Kernel() || m.Type() != want.Type || m.KeySize() != want.KeySize || m.ValueSize() != want.ValueSize {
			continue
		}
		if _, err := os.Lstat(pins.Map(name)); !errors.Is(err, os.ErrNotExist) {
			return "", nil
		}
		if err := errors.Join(EnsureDir(pins.Dir), EnsureDir(pins.Maps())); err != nil {
			return "", err
		}
		if err := m.Pin(pins.Map(name)); err != nil {
			return "", fmt.Errorf("pin map %d again: %w", id, err)
		}
		return name, nil
	}
	return "", nil
}

// PinLeadsTo reports whether the pin of a map leads to it: not, if nothing is
// there, or another map of the same shape. Anything else is an error that matches
// ErrForeign.
func PinLeadsTo(pins Pins, name MapName, m *ebpf.Map) (bool, error) {
	spec, err := specs()
	if err != nil {
		return false, err
	}
	pinned, err := openPinned(pins.Map(name), spec.Maps[name.Kernel()], true)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer pinned.Close()
	a, err := pinned.Info()
	if err != nil {
		return false, fmt.Errorf("read info of pinned map: %w", err)
	}
	b, err := m.Info()
	if err != nil {
		return false, fmt.Errorf("read info of map %s: %w", name, err)
	}
	there, _ := a.ID()
	ours, _ := b.ID()
	return there == ours, nil
}

// OpenMapsOf opens the maps of a table of which some pins are gone: by their pins,
// or by programs of ours that use them. It changes nothing. Its error matches
// os.ErrNotExist where a map that every version has is in neither.
func OpenMapsOf(pins Pins, progs []*ebpf.Program) (*Maps, error) {
	spec, err := specs()
	if err != nil {
		return nil, err
	}
	m := &Maps{byName: map[MapName]*ebpf.Map{}}
	if err := m.openOf(pins, progs, spec); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Maps) openOf(pins Pins, progs []*ebpf.Program, spec *ebpf.CollectionSpec) error {
	for _, name := range MapNames() {
		want := spec.Maps[name.Kernel()]
		bm, err := openPinned(pins.Map(name), want, false)
		if errors.Is(err, os.ErrNotExist) {
			bm, err = usedMap(progs, name, want, err)
		}
		if errors.Is(err, os.ErrNotExist) && name.later() {
			continue
		}
		if err != nil {
			return err
		}
		m.byName[name] = bm
	}
	return m.checkMeta(pins)
}

// usedMap opens the map of a name that programs use; missing is the error where none does.
func usedMap(progs []*ebpf.Program, name MapName, want *ebpf.MapSpec, missing error) (*ebpf.Map, error) {
	for _, p := range progs {
		info, err := p.Info()
		if err != nil {
			return nil, fmt.Errorf("read program info: %w", err)
		}
		ids, _ := info.MapIDs()
		for _, id := range ids {
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				return nil, fmt.Errorf("open map %d: %w", id, err)
			}
			if is, err := m.Info(); err == nil && is.Name == name.Kernel() && m.Type() == want.Type && m.KeySize() == want.KeySize && m.ValueSize() == want.ValueSize {
				return m, nil
			}
			m.Close()
		}
	}
	return nil, missing
}
