package bpf

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// LayoutVersion is the version of the maps' byte layout. It is part of every
// map's name: a pin of another layout is never mistaken for ours, and can live
// beside it during a migration.
const LayoutVersion = 1

// DirName is the directory below the bpffs that holds all pins of an instance.
const DirName = "firsthop"

// Pins says where an instance's objects are pinned:
//
//	<bpffs>/firsthop/maps/frontend_v1 …   the NAT table
//	<bpffs>/firsthop/links/connect4 …     attachments by bpf_link (Linux 5.7)
//	<bpffs>/firsthop/progs/connect4 …     attached programs, below 5.7
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
func (p Pins) Map(name MapName) string { return filepath.Join(p.Maps(), name.Pin()) }

// MapName is the short name of a map, such as "frontend".
type MapName string

// The maps of the NAT table. lib/maps.h says what each is for.
const (
	MapMeta     MapName = "meta"
	MapFrontend MapName = "frontend"
	MapService  MapName = "service"
	MapBackend  MapName = "backend"
	MapRange    MapName = "range"
	MapControl  MapName = "control"
	MapWorkload MapName = "workload"
	MapAffinity MapName = "affinity"
	MapCounter  MapName = "counter"
	MapPeer     MapName = "peer"
	MapReverse  MapName = "reverse"
	MapFlow     MapName = "flow"
)

// MapNames are all maps, in the order in which they are created: meta first,
// as it says whose the others are.
func MapNames() []MapName {
	return []MapName{MapMeta, MapFrontend, MapService, MapBackend,
		MapRange, MapControl, MapWorkload, MapAffinity, MapCounter, MapPeer, MapReverse, MapFlow}
}

// later reports whether a map came to the layout after its first release. A
// table without it is whole for the programs that were attached with it; the
// next init or run adds it.
func (n MapName) later() bool {
	switch n {
	case MapRange, MapControl, MapWorkload, MapAffinity:
		return true
	}
	return false
}

// Pin is the file name of the map's pin.
func (n MapName) Pin() string { return fmt.Sprintf("%s_v%d", n, LayoutVersion) }

// Kernel is the name that the map has in the kernel, and in the object.
func (n MapName) Kernel() string { return fmt.Sprintf("fh_%s_v%d", n, LayoutVersion) }

// ParseMapPin is the inverse of Pin for any layout: "frontend_v0" is the
// frontend map of layout 0. ok is false for names that no layout has.
func ParseMapPin(name string) (m MapName, layout uint32, ok bool) {
	base, version, found := strings.Cut(name, "_v")
	if !found {
		return "", 0, false
	}
	v, err := strconv.ParseUint(version, 10, 32)
	if err != nil {
		return "", 0, false
	}
	for _, n := range MapNames() {
		if string(n) == base {
			return n, uint32(v), true
		}
	}
	return "", 0, false
}
