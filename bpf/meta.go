package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// What the map meta says of the table: whose it is, and its layout.

// Meta reads the meta entry; it is zero before the table was first used.
func (m *Maps) Meta() (Meta, error) {
	var meta Meta
	if err := m.Map(MapMeta).Lookup(uint32(0), &meta); err != nil {
		return Meta{}, fmt.Errorf("read meta map: %w", err)
	}
	return meta, nil
}

func (m *Maps) putMeta(meta Meta) error {
	if err := m.Map(MapMeta).Put(uint32(0), meta); err != nil {
		return fmt.Errorf("write meta map: %w", err)
	}
	return nil
}

// checkMeta refuses a table that is marked as somebody else's; one without meta has no owner yet.
func (m *Maps) checkMeta(pins Pins) error {
	if m.Map(MapMeta) == nil {
		return nil
	}
	meta, err := m.Meta()
	if err != nil {
		return err
	}
	switch {
	case meta.Owner == MetaOwner && meta.ABI == LayoutVersion, meta == Meta{}:
		return nil
	case meta.Owner == MetaOwner && meta.ABI > LayoutVersion:
		return fmt.Errorf("%s has layout %d, this firsthop knows %d: use the newer firsthop: %w",
			pins.Map(MapMeta), meta.ABI, LayoutVersion, ErrNewerLayout)
	default:
		return fmt.Errorf("%s is marked owner %#x, layout %d, firsthop's are %#x, %d: move it away if nothing needs it: %w",
			pins.Map(MapMeta), meta.Owner, meta.ABI, MetaOwner, LayoutVersion, ErrForeign)
	}
}

// PutGeneration notes the highest set id that was ever given out.
func (m *Maps) PutGeneration(g uint64) error {
	return m.putMeta(Meta{ABI: LayoutVersion, Owner: MetaOwner, Generation: g})
}

// OtherLayouts lists the pins of other layout versions beside ours.
func OtherLayouts(pins Pins) ([]string, error) {
	entries, err := os.ReadDir(pins.Maps())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pinned maps: %w", err)
	}
	var paths []string
	for _, e := range entries {
		if name, version, ok := ParseMapPin(e.Name()); ok && version != name.Info().Set.Version {
			paths = append(paths, filepath.Join(pins.Maps(), e.Name()))
		}
	}
	return paths, nil
}

func newerLayout(pins Pins) error {
	paths, err := OtherLayouts(pins)
	if err != nil {
		return err
	}
	for _, path := range paths {
		name, version, _ := ParseMapPin(filepath.Base(path))
		if known := name.Info().Set.Version; version > known {
			return fmt.Errorf("%s is of layout %d, this firsthop knows %d: use the newer firsthop, or uninstall with it first: %w",
				path, version, known, ErrNewerLayout)
		}
	}
	return nil
}
