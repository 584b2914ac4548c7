package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// MapUsage is how full one of the maps is in which programs remember sockets and clients.
type MapUsage struct {
	Map  MapName `json:"map"`
	Used int     `json:"used"` // entries, those of closed sockets that nobody has removed yet included
	Size int     `json:"size"`

	// What programs did since the map of SockUsage was made, where Counted.
	Counted    bool   `json:"counted"`
	Inserted   uint64 `json:"inserted"`
	Overflowed uint64 `json:"overflowed"` // that went to the LRU hash beside it

	LRU bool `json:"lru,omitempty"` // it forgets what was used longest ago, so that it may well be full
}

// usages are the maps of Usage, and where SockUsage has their counters; -1: nowhere.
var usages = []struct {
	name  MapName
	count int
}{
	{MapUDPSockRevNat, int(SockUsageRevNat)}, {MapUDPSockAffinity, int(SockUsageAffinity)},
	{MapUDPRevNat, -1}, {MapSockAffinity, -1}, {MapAffinity, -1}, {MapWorkload, -1},
}

// Usage counts the entries of the maps in which programs remember sockets, clients and pods. That of TCP sockets is an array, whose
// places are all used after a while. It reads every key: some 10 ms for 100,000 entries. Maps that a former version's table
// does not have are left out.
func (m *Maps) Usage(f Features) ([]MapUsage, error) {
	var list []MapUsage
	for _, u := range usages {
		bm := m.Map(u.name)
		if bm == nil {
			continue
		}
		is := MapUsage{Map: u.name, Size: int(bm.MaxEntries()), LRU: bm.Type() == ebpf.LRUHash}
		var err error
		if is.Used, err = countEntries(u.name, bm, f); err != nil {
			return nil, fmt.Errorf("count entries of %s: %w", u.name, err)
		}
		if counts := m.Map(MapSockUsage); counts != nil && u.count >= 0 {
			var c SockUsage
			if err := counts.Lookup(uint32(u.count), &c); err != nil {
				return nil, fmt.Errorf("read what was added to %s: %w", u.name, err)
			}
			is.Counted, is.Inserted, is.Overflowed = true, c.Inserted, c.Overflowed
		}
		list = append(list, is)
	}
	return list, nil
}

func countEntries(name MapName, m *ebpf.Map, f Features) (n int, err error) {
	switch name {
	case MapUDPSockRevNat, MapUDPRevNat:
		n, err = count[UDPRevNatKey, UDPRevNat](m, f)
	case MapUDPSockAffinity, MapSockAffinity:
		n, err = count[SockAffinityKey, SockAffinity](m, f)
	case MapAffinity:
		n, err = count[AffinityKey, AffinityValue](m, f)
	case MapWorkload:
		n, err = count[uint64, Workload](m, f)
	}
	return n, err
}

// count may count less while entries go, without batches.
func count[K, V any](m *ebpf.Map, f Features) (n int, err error) {
	err = ReadMap(m, ReadConfig{Batch: f.Batch}, func(*K, *V) bool { n++; return true })
	if errors.Is(err, ebpf.ErrIterationAborted) {
		err = nil
	}
	return min(n, int(m.MaxEntries())), err
}
