package bpf

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The pins of maps: made and led anew, opened, judged and removed.

// ensurePins has all pins of a map lead to it, which was opened by the first that is there. It returns those that were not.
func (m *Maps) ensurePins(pins Pins, name MapName, spec *ebpf.MapSpec) (made []string, err error) {
	opened := false
	for _, pin := range pins.MapPins(name) {
		if _, err := os.Lstat(pin); err == nil && !opened {
			opened = true
			continue
		}
		there, same, err := leadsTo(pin, spec, m.Map(name))
		switch {
		case err != nil:
			return made, err
		case there && !same:
			err = replacePin(m.Map(name), pin)
		case !there:
			if err = pinMap(m.Map(name), pin); err == nil {
				made = append(made, pin)
			}
		}
		if err != nil {
			return made, err
		}
	}
	return made, nil
}

// leadsTo reports whether there is a pin, and whether it leads to a map. Its error matches ErrForeign.
func leadsTo(pin string, spec *ebpf.MapSpec, m *ebpf.Map) (there, same bool, err error) {
	pinned, err := openPinned(pin, spec, true)
	if errors.Is(err, os.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	defer pinned.Close()
	is, err := mapID(pinned)
	if err != nil {
		return false, false, err
	}
	want, err := mapID(m)
	return true, is == want, err
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("read info of map: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

// pinMap pins a map, which may have other pins: the library would move one that it knows of.
func pinMap(m *ebpf.Map, pin string) error {
	c, err := m.Clone()
	if err != nil {
		return fmt.Errorf("pin map: %w", err)
	}
	defer c.Close()
	if err := c.Pin(pin); err != nil {
		return fmt.Errorf("pin map: %w", err)
	}
	return nil
}

// replacePin has a pin of ours lead to a map, in one step.
func replacePin(m *ebpf.Map, pin string) error {
	next := pin + growSuffix
	if err := removePin(next); err != nil {
		return fmt.Errorf("remove left-over pin: %w", err)
	}
	if err := pinMap(m, next); err != nil {
		return err
	}
	if err := os.Rename(next, pin); err != nil {
		return errors.Join(fmt.Errorf("move pinned map into place: %w", err), os.Remove(next))
	}
	return nil
}

// removePin removes a pin that may not be there.
func removePin(pin string) error {
	if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// openPinned opens a pin and compares what it finds with what the layout
// wants. The number of entries may differ, what they mean may not.
func openPinned(path string, want *ebpf.MapSpec, readOnly bool) (*ebpf.Map, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, fmt.Errorf("open pinned map: %w", &os.PathError{Op: "lstat", Path: path, Err: err})
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK { // one that dangles can be neither opened nor pinned over
		return nil, fmt.Errorf("%s is a symbolic link: move it away if nothing needs it: %w", path, ErrForeign)
	}
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: readOnly})
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("open pinned map %s: %w", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s doesn't hold a BPF map (%s): move it away if nothing needs it: %w", path, err, ErrForeign)
	}
	if !sameShape(m, want) {
		defer m.Close()
		return nil, fmt.Errorf("%s is a %v map with %d byte keys and %d byte values, firsthop's is %v, %d, %d: move it away if nothing needs it: %w",
			path, m.Type(), m.KeySize(), m.ValueSize(), want.Type, want.KeySize, want.ValueSize, ErrForeign)
	}
	return m, nil
}

func sameShape(m *ebpf.Map, want *ebpf.MapSpec) bool {
	return m.Type() == want.Type && m.KeySize() == want.KeySize && m.ValueSize() == want.ValueSize
}

// Discard unpins what EnsureMaps pinned: for an init stage whose proof failed.
func (m *Maps) Discard(pins Pins) error {
	var errs []error
	for _, pin := range m.pinned {
		if err := removePin(pin); err != nil {
			errs = append(errs, fmt.Errorf("unpin map: %w", err))
		}
	}
	m.Created, m.pinned = nil, nil
	RemoveEmptyDirs(pins)
	return errors.Join(errs...)
}

// RemoveMaps unpins the maps of a table, or of what a killed run left of one.
// What isn't ours stays, and is an error that matches ErrForeign. meta goes
// last: it says whose the others are.
func RemoveMaps(pins Pins) error {
	specs, err := specs(Sizes{})
	if err != nil {
		return err
	}
	if err := checkOwner(pins, specs); err != nil {
		return err
	}
	var errs []error
	for _, name := range slices.Backward(MapNames()) {
		for _, pin := range pins.MapPins(name) {
			for _, pin := range []string{pin + growSuffix, pin} {
				if err := removeMap(pin, specs[name]); err != nil {
					errs = append(errs, fmt.Errorf("unpin map: %w", err))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// checkOwner refuses a table that is marked as somebody else's.
func checkOwner(pins Pins, specs map[MapName]*ebpf.MapSpec) error {
	meta, err := openNamed(pins, MapMeta, specs, true)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	m := &Maps{byName: map[MapName]*ebpf.Map{MapMeta: meta}}
	defer m.Close()
	return m.checkMeta(pins)
}

func removeMap(pin string, want *ebpf.MapSpec) error {
	m, err := openPinned(pin, want, true)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	m.Close()
	return os.Remove(pin)
}

// RemoveEmptyDirs removes those directories of ours that hold nothing.
func RemoveEmptyDirs(pins Pins) {
	for _, dir := range []string{pins.Maps(), pins.Links(), pins.Progs(), pins.Dir} {
		os.Remove(dir) // fails on a directory that isn't empty: that is meant
	}
}

// EnsureDir makes a directory for pins, below one that exists. On a bpffs of mode 1777 anybody may have made it before,
// and could take our pins away: one that is not root's alone is an error that matches ErrForeign.
func EnsureDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		return nil
	}
	if !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("create pin directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("look at pin directory: %w", &os.PathError{Op: "lstat", Path: dir, Err: err})
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a directory: move it away if nothing needs it: %w", dir, ErrForeign)
	case st.Uid != uint32(os.Geteuid()):
		return fmt.Errorf("%s belongs to user %d, who could remove pins from it: remove it: %w", dir, st.Uid, ErrForeign)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("others than its owner may write %s, and could remove pins from it: chmod 0700 %s: %w", dir, dir, ErrForeign)
	}
	return nil
}
