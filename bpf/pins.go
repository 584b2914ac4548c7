package bpf

import "path/filepath"

// DirName is the directory below the bpffs that holds all pins of an instance.
const DirName = "firsthop"

// Pins says where an instance's objects are pinned:
//
//	<bpffs>/firsthop/maps/frontend_v1 …   the NAT table
//	<bpffs>/firsthop/links/connect4 …     attachments by bpf_link (Linux 5.7)
//	<bpffs>/firsthop/progs/connect4 …     attached programs, below 5.7
//	<bpffs>/firsthop/links/from_uplink_7 …  attachments by tcx to the device with the index 7 (Linux 6.6)
//	<bpffs>/firsthop/progs/from_uplink_7 …  programs of filters of its clsact qdisc, below 6.6
type Pins struct {
	Dir string // <bpffs>/firsthop
}

// PinsBelow gives the pins of the instance that lives on a bpffs.
func PinsBelow(bpffs string) Pins { return Pins{Dir: filepath.Join(bpffs, DirName)} }

// Maps is the directory of the pinned maps.
func (p Pins) Maps() string { return filepath.Join(p.Dir, "maps") }

// Links is the directory of the pinned bpf_links.
func (p Pins) Links() string { return filepath.Join(p.Dir, "links") }

// Progs is the directory of the pinned programs, used where there are no links.
func (p Pins) Progs() string { return filepath.Join(p.Dir, "progs") }

// Map is the path of a map's pin.
func (p Pins) Map(name MapName) string { return filepath.Join(p.Maps(), name.Info().Pin()) }

// MapPins are the paths of all pins of a map: those of a map that was renamed are two, see MapInfo.Former.
func (p Pins) MapPins(name MapName) []string {
	pins := name.Info().pins()
	for i, pin := range pins {
		pins[i] = filepath.Join(p.Maps(), pin)
	}
	return pins
}

// AllMapPins are the paths of the pins of all maps.
func (p Pins) AllMapPins() []string {
	var pins []string
	for _, name := range MapNames() {
		pins = append(pins, p.MapPins(name)...)
	}
	return pins
}

// PacketMapPins are the paths of the pins of the packet path's maps.
func (p Pins) PacketMapPins() []string {
	var pins []string
	for _, info := range packetTable {
		pins = append(pins, p.Map(info.Name))
	}
	return pins
}
