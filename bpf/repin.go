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
