package bpf

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The maps of the packet path. They are not part of a NAT table: init never makes them, and a runtime does only where
// the packet path is on.
const (
	MapConntrack     MapName = "conntrack"
	MapFragment      MapName = "fragment"
	MapMasquerade    MapName = "masquerade"
	MapPacketControl MapName = "packet_control"
	MapPackets       MapName = "packets"
	MapRejectLimit   MapName = "reject_limit"
	MapEvents        MapName = "events"
	MapMonitor       MapName = "monitor"
)

var setPacket = MapSet{"packet", 1}

var packetTable = []MapInfo{
	{Name: MapConntrack, Set: setPacket, Kernel: "fh_conntrack", Key: FlowKey{}, Value: Flow{}, Objects: bothUplinks},
	{Name: MapFragment, Set: setPacket, Kernel: "fh_fragment", Key: FragmentKey{}, Value: Fragment{}, Objects: bothUplinks},
	{Name: MapMasquerade, Set: setPacket, Kernel: "fh_masquerade", Key: MasqueradeKey{}, Value: Address{}, Objects: []string{"to_uplink"}},
	{Name: MapPacketControl, Set: setPacket, Kernel: "fh_packet_ctl", Key: uint32(0), Value: PacketControl{}, Objects: []string{"to_uplink"}},
	{Name: MapPackets, Set: setPacket, Kernel: "fh_packets", Key: uint32(0), Value: uint64(0), Objects: bothUplinks},
	{Name: MapRejectLimit, Set: setPacket, Kernel: "fh_reject", Key: uint32(0), Value: RejectLimit{}, Objects: []string{"from_uplink"}},
	{Name: MapEvents, Set: setPacket, Kernel: "fh_events", Key: struct{}{}, Value: struct{}{}, Objects: bothUplinks},
	{Name: MapMonitor, Set: setPacket, Kernel: "fh_monitor", Key: uint32(0), Value: uint64(0), Objects: bothUplinks},
}

var bothUplinks = []string{"from_uplink", "to_uplink"}

// PacketMapTable lists the maps of the packet path.
func PacketMapTable() []MapInfo { return slices.Clone(packetTable) }

// The bounds of the number of entries of MapConntrack; a flow takes two, or four where it is masqueraded.
const (
	MinFlows = 1 << 16
	MaxFlows = 1 << 20
)

const (
	// perFlow is for how many bytes of the node's memory there is an entry, as netfilter has about one connection
	// for each 16 KiB (nf_conntrack_init_start).
	perFlow = 32 << 10
	// flowSize is what an entry takes of memory: the kernel allocates all of an LRU hash at once.
	flowSize = 144
)

// NodeFlows is how many entries MapConntrack has on a node with so many bytes of memory; limit is that of NodeSizes.
func NodeFlows(memory, limit uint64) uint32 {
	n := memory / perFlow
	if limit > 0 {
		n = min(n, limit/4/flowSize)
	}
	return uint32(min(powerOfTwo(max(n, MinFlows)), MaxFlows))
}

// PacketMaps are the open maps of the packet path. Not safe for concurrent use.
type PacketMaps struct {
	byName map[MapName]*ebpf.Map
	known  map[ebpf.MapID]bool // see ids
	made   []string            // pins that EnsurePacketMaps made
}

// Map is an open map; nil: MapEvents, where the kernel has no ring buffers (Linux 5.8).
func (m *PacketMaps) Map(name MapName) *ebpf.Map { return m.byName[name] }

// Close closes the handles; pinned maps stay.
func (m *PacketMaps) Close() error {
	var errs []error
	for _, bm := range m.byName {
		errs = append(errs, bm.Close())
	}
	return errors.Join(errs...)
}

// EnsurePacketMaps opens the maps of the packet path, and creates and pins those that are missing. flows is the number of
// entries of MapConntrack where it is created; one that exists keeps its size, and its flows. The error matches
// ErrForeign where somebody else's pin is in the way. On an error, nothing new is pinned.
//
// The caller holds the instance's lock.
func EnsurePacketMaps(pins Pins, flows uint32) (*PacketMaps, error) {
	m := &PacketMaps{byName: map[MapName]*ebpf.Map{}}
	if err := m.ensure(pins, flows); err != nil {
		return nil, errors.Join(err, m.Discard(), m.Close())
	}
	return m, nil
}

// Discard unpins what EnsurePacketMaps pinned.
func (m *PacketMaps) Discard() error {
	var errs []error
	for _, pin := range m.made {
		errs = append(errs, removePin(pin))
	}
	m.made = nil
	return errors.Join(errs...)
}

func (m *PacketMaps) ensure(pins Pins, flows uint32) error {
	for _, dir := range []string{pins.Dir, pins.Maps()} {
		if err := EnsureDir(dir); err != nil {
			return err
		}
	}
	for _, info := range packetTable {
		spec, err := packetSpec(info)
		if err != nil {
			return err
		}
		if info.Name == MapConntrack && flows != 0 {
			spec.MaxEntries = flows
		}
		pin := pins.Map(info.Name)
		bm, err := openPinned(pin, spec, false)
		if errors.Is(err, os.ErrNotExist) {
			bm, err = ebpf.NewMap(spec)
			if info.Name == MapEvents && noRingBuffer(err) {
				continue
			}
			if err != nil {
				return fmt.Errorf("create map %s with %d entries: %w", spec.Name, spec.MaxEntries, explainMemory(err))
			}
			m.byName[info.Name] = bm
			if err := pinMap(bm, pin); err != nil {
				return err
			}
			m.made = append(m.made, pin)
			continue
		}
		if err != nil {
			return err
		}
		m.byName[info.Name] = bm
	}
	return nil
}

// Repin pins those maps again that have lost their pins, and reports which. What is pinned in their place is left alone.
//
// The caller holds the instance's lock.
func (m *PacketMaps) Repin(pins Pins) (repinned []MapName, err error) {
	for _, info := range packetTable {
		bm, pin := m.Map(info.Name), pins.Map(info.Name)
		if _, err := os.Lstat(pin); bm == nil || !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := errors.Join(EnsureDir(pins.Dir), EnsureDir(pins.Maps())); err != nil {
			return repinned, err
		}
		if err := pinMap(bm, pin); err != nil {
			return repinned, err
		}
		repinned = append(repinned, info.Name)
	}
	return repinned, nil
}

// OpenPacketMaps opens the pinned maps of the packet path. Its error matches os.ErrNotExist where one is missing: then
// the packet path is off, or a run that made them was killed.
func OpenPacketMaps(pins Pins, readOnly bool) (*PacketMaps, error) {
	m := &PacketMaps{byName: map[MapName]*ebpf.Map{}}
	for _, info := range packetTable {
		spec, err := packetSpec(info)
		if err != nil {
			return nil, errors.Join(err, m.Close())
		}
		bm, err := openPinned(pins.Map(info.Name), spec, readOnly && info.Name != MapEvents) // a reader of events says how far it is
		if info.Name == MapEvents && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, errors.Join(err, m.Close())
		}
		m.byName[info.Name] = bm
	}
	return m, nil
}

// RemovePacketMaps unpins the maps of the packet path. What isn't ours stays, and is an error that matches ErrForeign.
func RemovePacketMaps(pins Pins) error {
	var errs []error
	for _, info := range packetTable {
		spec, err := packetSpec(info)
		if err == nil {
			err = removeMap(pins.Map(info.Name), spec)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("unpin map: %w", err))
		}
	}
	return errors.Join(errs...)
}

// noRingBuffer: the kernel doesn't know that type of map.
func noRingBuffer(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, ebpf.ErrNotSupported)
}

func packetSpec(info MapInfo) (*ebpf.MapSpec, error) {
	object, err := parsedMaps()
	if err != nil {
		return nil, fmt.Errorf("parse embedded object: %w", err)
	}
	return object.Maps[info.Kernel].Copy(), nil
}

// Counts reads what became of packets.
func (m *PacketMaps) Counts() (map[PacketCount]uint64, error) {
	counts := map[PacketCount]uint64{}
	for _, c := range PacketCounts() {
		var n uint64
		if err := m.Map(MapPackets).Lookup(uint32(c), &n); err != nil {
			return nil, fmt.Errorf("read counts of packets: %w", err)
		}
		counts[c] = n
	}
	return counts, nil
}
