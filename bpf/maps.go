package bpf

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MapSet is a group of maps whose layout changes together. Its version is part
// of the name of each pin: a pin of another layout is never mistaken for ours,
// and can live beside it during a migration.
type MapSet struct {
	Name    string
	Version uint32
}

// LayoutVersion is the version of the set "lb", which holds the Services.
const LayoutVersion = 1

var (
	setLB       = MapSet{"lb", LayoutVersion}
	setWorkload = MapSet{"workload", 1}
	setSock     = MapSet{"sock", 1}
)

// MapName is the noun of a map, such as "frontend".
type MapName string

// All maps. lib/*_maps.h say what each is for.
const (
	MapMeta        MapName = "meta"
	MapFrontend    MapName = "frontend"
	MapNodePorts   MapName = "node_ports"
	MapService     MapName = "service"
	MapBackend     MapName = "backend"
	MapCounter     MapName = "counter"
	MapAffinity    MapName = "affinity"
	MapSourceRange MapName = "source_range"
	MapControl     MapName = "control"
	MapWorkload    MapName = "workload"
	MapSockRevNat  MapName = "sock_rev_nat"

	// UDP sockets have their entries in a hash (MapUDPSock…), and where that has no room in the LRU hash that a former
	// version has for them (MapUDPRevNat, MapSockAffinity). Programs ask in that order.
	MapUDPSockRevNat   MapName = "udp_sock_rev_nat"
	MapUDPRevNat       MapName = "udp_rev_nat"
	MapUDPSockAffinity MapName = "udp_sock_affinity"
	MapSockAffinity    MapName = "sock_affinity"
	MapSockUsage       MapName = "sock_usage"
	MapUDPLog          MapName = "udp_log"
)

// MapInfo is what the project knows of a map, independent of the objects that use it.
type MapInfo struct {
	Name       MapName
	Set        MapSet
	Kernel     string             // its name in the kernel and in objects, at most 15 bytes
	Key, Value any                // Go twins of its C types
	Entries    func(Sizes) uint32 // what it is sized by, and grows by; nil: as its header says
	PerSocket  bool               // has entries of sockets, not of Services
	Objects    []string           // the objects of programs that use it

	// Former is its noun in the version before this one. Its pin is kept there, too, so that both versions
	// adopt each other's tables; the next version removes it.
	Former string

	// Later: it came after the first release. A table without it is whole for the programs that were attached
	// with it; the next init or run adds it.
	Later bool
}

// mapTable has all maps in the order in which they are created: meta first, as it says whose the others are.
var mapTable = []MapInfo{
	{Name: MapMeta, Set: setLB, Kernel: "fh_meta", Key: uint32(0), Value: Meta{}},
	{Name: MapFrontend, Set: setLB, Kernel: "fh_frontend", Key: FrontendKey{}, Value: Frontend{}, Objects: lookups,
		Entries: func(s Sizes) uint32 { return s.Frontends }},
	{Name: MapNodePorts, Set: setLB, Kernel: "fh_node_ports", Key: uint32(0), Value: uint64(0), Objects: connect, Later: true},
	{Name: MapService, Set: setLB, Kernel: "fh_service", Key: uint32(0), Value: ServiceState(0), Objects: lookups,
		Entries: func(s Sizes) uint32 { return 2 * s.Services }},
	{Name: MapBackend, Set: setLB, Kernel: "fh_backend", Key: BackendKey{}, Value: Backend{}, Objects: lookups,
		Entries: func(s Sizes) uint32 { return s.Backends }},
	{Name: MapCounter, Set: setLB, Kernel: "fh_counter", Key: uint32(0), Value: Counters{}, Objects: lookups,
		Entries: func(s Sizes) uint32 { return s.Services }},
	{Name: MapAffinity, Set: setLB, Kernel: "fh_affinity", Key: AffinityKey{}, Value: AffinityValue{}, Objects: lookups, Later: true},
	{Name: MapSourceRange, Set: setLB, Kernel: "fh_source_range", Key: SourceRangeKey{}, Value: uint8(0), Objects: lookups, Later: true,
		Entries: func(s Sizes) uint32 { return s.SourceRanges }, Former: "range"},
	{Name: MapControl, Set: setWorkload, Kernel: "fh_control", Key: uint32(0), Value: Control(0), Objects: connect, Later: true},
	{Name: MapWorkload, Set: setWorkload, Kernel: "fh_workload", Key: uint64(0), Value: Workload{}, Objects: connect, Later: true},
	{Name: MapSockRevNat, Set: setSock, Kernel: "fh_sock_rev_nat", Key: uint32(0), Value: SockRevNat{}, Objects: connect,
		PerSocket: true, Former: "peer", Entries: func(s Sizes) uint32 { return s.TCPSockets }},
	{Name: MapUDPRevNat, Set: setSock, Kernel: "fh_udp_rev_nat", Key: UDPRevNatKey{}, Value: UDPRevNat{}, Objects: connect,
		PerSocket: true, Former: "reverse"},
	{Name: MapSockAffinity, Set: setSock, Kernel: "fh_sock_affin", Key: SockAffinityKey{}, Value: SockAffinity{}, Objects: connect,
		PerSocket: true, Former: "flow"},
	{Name: MapUDPSockRevNat, Set: setSock, Kernel: "fh_udp_sock", Key: UDPRevNatKey{}, Value: UDPRevNat{}, Objects: connect,
		PerSocket: true, Later: true, Entries: func(s Sizes) uint32 { return s.UDPSockets }},
	{Name: MapUDPSockAffinity, Set: setSock, Kernel: "fh_udp_affin", Key: SockAffinityKey{}, Value: SockAffinity{}, Objects: connect,
		PerSocket: true, Later: true, Entries: func(s Sizes) uint32 { return s.UDPSessions }},
	{Name: MapSockUsage, Set: setSock, Kernel: "fh_sock_usage", Key: uint32(0), Value: SockUsage{}, Objects: connect, Later: true},
	{Name: MapUDPLog, Set: setSock, Kernel: "fh_udp_log", Key: struct{}{}, Value: UDPWayBack{}, Objects: connect, PerSocket: true, Later: true},
}

// The objects that use a map: that of the connect-time load balancer, and those of uplinks.
var (
	connect = []string{"connect"}
	lookups = []string{"connect", "from_uplink"}
)

// outgrownMaps are the names in objects of the maps that maps of sockets take the place of (lib/outgrown_maps.h). They
// are in no table: what they were is unpinned as soon as nothing is there alone.
var outgrownMaps = map[MapName]string{
	MapSockRevNat:      "outgrown_tcp",
	MapUDPSockRevNat:   "outgrown_udp",
	MapUDPSockAffinity: "outgrown_affin",
}

// MapTable lists all maps in the order in which they are created.
func MapTable() []MapInfo { return slices.Clone(mapTable) }

// MapNames are the names of all maps, in the same order.
func MapNames() []MapName {
	names := make([]MapName, len(mapTable))
	for i, info := range mapTable {
		names[i] = info.Name
	}
	return names
}

// Info is the map's line of its table, of the NAT table's maps or of the packet path's; zero for a name that is not in it.
func (n MapName) Info() MapInfo {
	for _, table := range [...][]MapInfo{mapTable, packetTable} {
		for _, info := range table {
			if info.Name == n {
				return info
			}
		}
	}
	return MapInfo{}
}

// Pin is the file name of the map's pin.
func (i MapInfo) Pin() string { return fmt.Sprintf("%s_v%d", i.Name, i.Set.Version) }

// pins are the file names of all of its pins. The one that the version before has comes first: where they lead to
// different maps, that version has exchanged it, or this one was killed after it did.
func (i MapInfo) pins() []string {
	if i.Former == "" {
		return []string{i.Pin()}
	}
	return []string{i.Former + "_v1", i.Pin()}
}

// kernelNames are those that a map may have that is in use: this version's, and the one that it had before, which
// ended in the version. A new layout of the same sizes needs another name: maps that lost their pins are known by it.
func (i MapInfo) kernelNames() []string {
	former := i.Former
	if former == "" {
		former = string(i.Name)
	}
	return []string{i.Kernel, "fh_" + former + "_v1"}
}

// ParseMapPin is the inverse of Pin for any version of a set: "frontend_v0" is the
// frontend map of version 0. ok is false for names that no version has.
func ParseMapPin(name string) (m MapName, version uint32, ok bool) {
	base, suffix, found := strings.Cut(name, "_v")
	v, err := strconv.ParseUint(suffix, 10, 32)
	info := MapName(base).Info()
	if !found || err != nil || info.Name == "" {
		return "", 0, false
	}
	return info.Name, uint32(v), true
}
