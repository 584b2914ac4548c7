package natinit

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/natinit/attach"
)

// OpenTable opens the table that is pinned, and changes nothing. Maps that lost
// their pins are found by the programs that are pinned. Its error matches
// os.ErrNotExist where there is no whole table.
func OpenTable(pins bpf.Pins) (*bpf.Maps, error) {
	maps, err := bpf.OpenMaps(pins, false)
	if !errors.Is(err, os.ErrNotExist) {
		return maps, attach.ExplainRights(err)
	}
	progs, progErr := attach.PinnedPrograms(pins)
	if progErr != nil {
		return nil, errors.Join(err, progErr)
	}
	defer attach.CloseAll(progs)
	if len(progs) == 0 {
		return nil, err
	}
	maps, err = bpf.OpenMapsOf(pins, progs)
	return maps, attach.ExplainRights(err)
}

// repinMaps brings back the pins of maps that the attached programs use, if
// somebody removed some.
func repinMaps(pins bpf.Pins) error {
	missing := false
	for _, name := range bpf.MapNames() {
		_, err := os.Lstat(pins.Map(name))
		missing = missing || errors.Is(err, os.ErrNotExist)
	}
	if !missing {
		return nil
	}
	progs, err := attach.PinnedPrograms(pins)
	if err != nil {
		return err
	}
	defer attach.CloseAll(progs)
	return bpf.RepinMaps(pins, progs)
}

// EnsureMapPins has the pins of a table lead to its open maps again, where they
// are gone or lead to others of ours. What is not ours is left alone, and an
// error that matches bpf.ErrForeign.
func EnsureMapPins(pins bpf.Pins, maps *bpf.Maps) (repinned []bpf.MapName, err error) {
	var errs []error
	for _, name := range bpf.MapNames() {
		m := maps.Map(name)
		if m == nil {
			continue
		}
		same, err := bpf.PinLeadsTo(pins, name, m)
		if err == nil && !same {
			if err = errors.Join(bpf.EnsureDir(pins.Dir), bpf.EnsureDir(pins.Maps())); err == nil {
				err = maps.Repin(pins, name)
			}
			if err == nil {
				repinned = append(repinned, name)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("map %s: %w", name, err))
		}
	}
	return repinned, attach.ExplainRights(errors.Join(errs...))
}

// Pinned lists everything that Remove would unpin, in its order.
func Pinned(pins bpf.Pins) ([]string, error) {
	candidates := attach.PinPaths(pins, attach.Cgroup{}, bpf.Hooks())
	devices, err := attach.DevicePins(pins, bpf.UplinkHooks())
	if err != nil {
		return nil, err
	}
	candidates = slices.Concat(candidates, devices, pins.PacketMapPins(), pins.AllMapPins())
	var out []string
	for _, path := range candidates {
		_, err := os.Lstat(path)
		if err == nil {
			out = append(out, path)
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list pins: %w", err)
		}
	}
	return out, nil
}

// devices is a configuration for all that an instance has attached to devices.
func devices(cfg attach.Config) attach.Config {
	cfg.Programs = attach.ByName(bpf.UplinkHooks())
	return cfg
}

// Remove detaches the packet path's programs from all devices, then the load balancer, and unpins everything of an
// instance, the table last. cfg needs no programs.
//
// Errors are those of attach.Detach. A table of another owner keeps everything else, too.
func Remove(cfg attach.Config) error {
	if err := privileges.MayDetach(); err != nil {
		return err
	}
	var table attach.Balancer
	if cfg.Pins.Dir != "" {
		maps, err := bpf.OpenMaps(cfg.Pins, false)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return attach.ExplainRights(err)
		}
		if maps != nil {
			defer maps.Close()
		}
		table.Maps = maps
	}
	if err := RemovePackets(cfg); err != nil {
		return err
	}
	cfg.Programs = table
	left := attach.Detach(cfg)
	if left != nil && !errors.Is(left, attach.ErrStillAttached) || cfg.Pins.Dir == "" {
		return left // the table stays while something may read it
	}
	err := bpf.RemoveMaps(cfg.Pins)
	bpf.RemoveEmptyDirs(cfg.Pins)
	if err != nil {
		return err
	}
	return left
}

// RemovePackets takes the packet path away: its programs from all devices of the network namespace, and its maps with the flows in them. cfg
// needs neither target nor programs. Errors are those of attach.DetachDevices and bpf.RemovePacketMaps.
func RemovePackets(cfg attach.Config) error {
	if err := attach.DetachDevices(devices(cfg)); err != nil || cfg.Pins.Dir == "" {
		return err
	}
	return bpf.RemovePacketMaps(cfg.Pins)
}

// CheckRemove finds out, without any change, whether Remove can find everything.
func CheckRemove(cfg attach.Config) error {
	if err := attach.CheckDetachDevices(devices(cfg)); err != nil {
		return err
	}
	cfg.Programs = attach.Balancer{}
	return attach.CheckDetach(cfg)
}
