package bpf

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

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
			must(from.CopySockets(to, f, false))
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

// What finds no room in the larger map is an error, unless it may spill.
func TestCopySocketsWithoutRoom(t *testing.T) {
	sized := func(size uint32) *Maps {
		t.Helper()
		m, err := EnsureMaps(PinsBelow(lab.New(t).BPFFS), Sizes{UDPSockets: size, UDPSessions: size})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
	from, to := sized(64), sized(16)
	for i := range uint64(40) {
		if err := from.Map(MapUDPSockRevNat).Put(UDPRevNatKey{Cookie: i}, UDPRevNat{}); err != nil {
			t.Fatal(err)
		}
	}
	f := Features{Batch: lab.KernelFeatures().Batch}
	if err := from.CopySockets(to, f, false); !errors.Is(err, unix.E2BIG) {
		t.Errorf("without spilling: %v", err)
	}
	if err := from.CopySockets(to, f, true); err != nil {
		t.Error(err)
	}
	for i := range uint64(40) {
		var v UDPRevNat
		k := UDPRevNatKey{Cookie: i}
		if to.Map(MapUDPSockRevNat).Lookup(k, &v) != nil && to.Map(MapUDPRevNat).Lookup(k, &v) != nil {
			t.Errorf("socket %d is in no map", i)
		}
	}
}
