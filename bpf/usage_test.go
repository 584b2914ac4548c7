package bpf

import (
	"testing"

	"github.com/firsthop/firsthop/test/lab"
)

func TestUsageCountsEntries(t *testing.T) {
	m := mustEnsure(t, PinsBelow(lab.New(t).BPFFS))
	for i := range uint64(100) {
		if err := m.Map(MapUDPSockRevNat).Put(UDPRevNatKey{Cookie: i}, UDPRevNat{}); err != nil {
			t.Fatal(err)
		}
		if err := m.Map(MapSockAffinity).Put(SockAffinityKey{Cookie: i % 50}, SockAffinity{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Map(MapSockUsage).Put(SockUsageRevNat, SockUsage{Inserted: 100, Overflowed: 7}); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]Features{"in batches": {Batch: lab.KernelFeatures().Batch}, "one by one": {}} {
		t.Run(name, func(t *testing.T) {
			list, err := m.Usage(f)
			if err != nil || len(list) != len(usages) {
				t.Fatalf("%+v, %v", list, err)
			}
			for _, u := range list {
				want := MapUsage{Map: u.Map, Size: int(m.Map(u.Map).MaxEntries())}
				switch u.Map {
				case MapUDPSockRevNat:
					want.Used, want.Counted, want.Inserted, want.Overflowed = 100, true, 100, 7
				case MapUDPSockAffinity:
					want.Counted = true
				case MapSockAffinity:
					want.Used, want.LRU = 50, true
				case MapUDPRevNat, MapAffinity:
					want.LRU = true
				}
				if u != want {
					t.Errorf("%+v, want %+v", u, want)
				}
			}
		})
	}
	// A table of a version that did not have all of them.
	delete(m.byName, MapUDPSockRevNat)
	delete(m.byName, MapSockUsage)
	if list, err := m.Usage(Features{}); err != nil || len(list) != len(usages)-1 || list[0].Counted {
		t.Errorf("%+v, %v", list, err)
	}
}
