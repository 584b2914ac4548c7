package bpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
)

// RepinMaps pins those maps of running programs that have lost their pins: a
// table that the programs don't read would be of no use, and to seed it a
// gap in service until they are exchanged. progs are programs of ours.
func RepinMaps(pins Pins, progs []*ebpf.Program) error {
	specs, err := specs(Sizes{})
	if err != nil {
		return err
	}
	m, missing, err := openMaps(pins, specs, true)
	if err != nil {
		return err
	}
	defer m.Close()
	for _, name := range missing {
		used, err := usedMap(progs, name.Info(), specs[name])
		if err != nil {
			return err
		}
		if used == nil {
			continue
		}
		m.byName[name] = used
		err = errors.Join(EnsureDir(pins.Dir), EnsureDir(pins.Maps()))
		if err == nil {
			_, err = m.ensurePins(pins, name, specs[name])
		}
		if err != nil {
			return fmt.Errorf("pin map %s again: %w", name, err)
		}
	}
	return nil
}

// PinLeadsTo reports whether the pins of a map lead to it: not, if one is not
// there, or leads to another map of the same shape. Anything else is an error that matches
// ErrForeign.
func PinLeadsTo(pins Pins, name MapName, m *ebpf.Map) (bool, error) {
	specs, err := specs(Sizes{})
	if err != nil {
		return false, err
	}
	for _, pin := range pins.MapPins(name) {
		if _, same, err := leadsTo(pin, specs[name], m); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

// usedMap opens the map that programs use; nil: none does.
func usedMap(progs []*ebpf.Program, info MapInfo, want *ebpf.MapSpec) (*ebpf.Map, error) {
	for _, p := range progs {
		prog, err := p.Info()
		if err != nil {
			return nil, fmt.Errorf("read program info: %w", err)
		}
		ids, _ := prog.MapIDs()
		for _, id := range ids {
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				return nil, fmt.Errorf("open map %d: %w", id, err)
			}
			if is, err := m.Info(); err == nil && slices.Contains(info.kernelNames(), is.Name) && sameShape(m, want) {
				return m, nil
			}
			m.Close()
		}
	}
	return nil, nil
}
