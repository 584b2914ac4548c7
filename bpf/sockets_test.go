package bpf

import (
	"testing"

	"github.com/firsthop/firsthop/test/lab"
)

// Programs write to the larger maps while the smaller ones are copied: what is there already is newer.
func TestCopySocketsKeepsWhatIsNewer(t *testing.T) {
	from, to := mustEnsure(t, PinsBelow(lab.New(t).BPFFS)), mustEnsure(t, PinsBelow(lab.New(t).BPFFS))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	size := uint64(to.Map(MapSockRevNat).MaxEntries())
	tcp := func(m *Maps, cookie uint64) {
		must(m.Map(MapSockRevNat).Put(uint32(cookie%size), SockRevNat{Cookie: cookie, BackendPort: PortOf(uint16(cookie))}))
	}
	tcp(from, 1)
	tcp(to, 1+size) // later, in the same place
	tcp(from, 2+size)
	tcp(to, 2)
	tcp(from, 3)
	udp := UDPRevNatKey{Cookie: 7}
	must(from.Map(MapUDPSockRevNat).Put(udp, UDPRevNat{Index: 1}))
	must(to.Map(MapUDPSockRevNat).Put(udp, UDPRevNat{Index: 2}))
	session := SockAffinityKey{Cookie: 7}
	must(from.Map(MapUDPSockAffinity).Put(session, SockAffinity{ID: 1}))
	for name, f := range map[string]Features{"in batches": {Batch: lab.KernelFeatures().Batch}, "one by one": {}} {
		t.Run(name, func(t *testing.T) {
			must(from.CopySockets(to, f))
			for at, want := range map[uint32]uint64{1: 1 + size, 2: 2 + size, 3: 3, 4: 0} {
				var got SockRevNat
				must(to.Map(MapSockRevNat).Lookup(at, &got))
				if got.Cookie != want || got.BackendPort != PortOf(uint16(want)) {
					t.Errorf("place %d: socket %d, want %d", at, got.Cookie, want)
				}
			}
			var way UDPRevNat
			var kept SockAffinity
			must(to.Map(MapUDPSockRevNat).Lookup(udp, &way))
			must(to.Map(MapUDPSockAffinity).Lookup(session, &kept))
			if way.Index != 2 || kept.ID != 1 {
				t.Errorf("%+v, %+v: want the newer way back, and the backend that was kept", way, kept)
			}
		})
	}
}
