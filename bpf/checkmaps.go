package bpf

import (
	"errors"
	"os"

	"github.com/cilium/ebpf"
)

// CheckMaps says what EnsureMaps would stumble over, and changes nothing: its
// error matches ErrForeign or ErrNewerLayout. Maps that are missing are fine.
func CheckMaps(pins Pins) error {
	spec, err := specs()
	if err != nil {
		return err
	}
	if err := newerLayout(pins); err != nil {
		return err
	}
	m := &Maps{byName: map[MapName]*ebpf.Map{}}
	defer m.Close()
	for _, name := range MapNames() {
		bm, err := openPinned(pins.Map(name), spec.Maps[name.Kernel()], true)
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return err
		default:
			m.byName[name] = bm
		}
	}
	if m.Map(MapMeta) == nil {
		return nil
	}
	return m.checkMeta(pins)
}
