package bpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// What programs remember of sockets, when it moves from one map to another while programs change both.

// Outgrow has the programs that are loaded for m look for sockets in the maps of former, too. It reports whether any of
// these is not m's own. former stays open until Settle.
func (m *Maps) Outgrow(former *Maps) (differ bool, err error) {
	for name := range outgrownMaps {
		from := former.Map(name)
		if from == nil {
			continue
		}
		same, err := sameMap(from, m.Map(name))
		if err != nil {
			return false, err
		}
		if !same {
			m.outgrown = former
			return true, nil
		}
	}
	return false, nil
}

// Settle takes Outgrow back: all sockets of the smaller maps are in those of m.
func (m *Maps) Settle() { m.outgrown = nil }

// overflowOf has the LRU hash that takes what finds no room in a hash.
var overflowOf = map[MapName]MapName{MapUDPSockRevNat: MapUDPRevNat, MapUDPSockAffinity: MapSockAffinity}

// CopySockets copies what programs remember of sockets from those maps of m that to has others for. What is there
// already is newer, and stays. Entries that programs add to m meanwhile may be missed.
//
// What finds no room is an error; with spill it is put where programs put it, too, into the LRU hash, which may forget it.
func (m *Maps) CopySockets(to *Maps, f Features, spill bool) error {
	for name := range outgrownMaps {
		from, into := m.Map(name), to.Map(name)
		if from == nil || into == nil {
			continue
		}
		same, err := sameMap(from, into)
		if err != nil {
			return err
		}
		if same {
			continue
		}
		var overflow *ebpf.Map
		if spill {
			overflow = to.Map(overflowOf[name])
		}
		if err := copySockets(name, from, into, overflow, f); err != nil {
			return fmt.Errorf("copy %s: %w", name, err)
		}
	}
	return nil
}

func sameMap(a, b *ebpf.Map) (bool, error) {
	idOfA, err := mapID(a)
	if err != nil {
		return false, err
	}
	idOfB, err := mapID(b)
	return idOfA == idOfB, err
}

func copySockets(name MapName, from, to, overflow *ebpf.Map, f Features) error {
	switch name {
	case MapUDPSockRevNat, MapUDPRevNat:
		return copyNew[UDPRevNatKey, UDPRevNat](from, to, overflow, f)
	case MapUDPSockAffinity, MapSockAffinity:
		return copyNew[SockAffinityKey, SockAffinity](from, to, overflow, f)
	}
	return copyTCP(from, to, f)
}

func isNoRoom(err error) bool { return errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOMEM) }

// copyNew copies the entries of a hash that another does not have, or, where that has no room, to overflow, if there is one.
func copyNew[K, V any](from, to, overflow *ebpf.Map, f Features) error {
	var failed error
	copyOne := func(k *K, v *V) bool {
		failed = to.Update(k, v, ebpf.UpdateNoExist)
		if overflow != nil && isNoRoom(failed) {
			failed = overflow.Update(k, v, ebpf.UpdateNoExist)
		}
		if errors.Is(failed, ebpf.ErrKeyExist) {
			failed = nil
		}
		return failed == nil
	}
	err := ReadMap(from, ReadConfig{Batch: f.Batch}, copyOne)
	for try := 0; errors.Is(err, ebpf.ErrIterationAborted) && try < 3; try++ { // without batches, while entries go
		err = ReadMap(from, ReadConfig{}, copyOne)
	}
	return errors.Join(failed, err)
}

// copyTCP copies the way back of TCP sockets. Of two in one place the later socket has it: cookies count up.
func copyTCP(from, to *ebpf.Map, f Features) error {
	mask := to.MaxEntries() - 1
	var failed error
	err := ReadMap(from, ReadConfig{Batch: f.Batch, Lock: true}, func(_ *uint32, r *SockRevNat) bool {
		if r.Cookie == 0 {
			return true
		}
		at := uint32(r.Cookie) & mask
		var there SockRevNat
		if failed = to.LookupWithFlags(at, &there, ebpf.LookupLock); failed == nil && there.Cookie < r.Cookie {
			failed = to.Update(at, r, ebpf.UpdateExist|ebpf.UpdateLock)
		}
		return failed == nil
	})
	return errors.Join(failed, err)
}

// AbsorbOverflow copies what the LRU hashes of UDP sockets have into the hashes, which forget nothing: what a former
// version has left there, and what came while a hash was full. Those that find no room stay where they are.
func (m *Maps) AbsorbOverflow(f Features) error {
	for hash, lru := range overflowOf {
		from, to := m.Map(lru), m.Map(hash)
		if from == nil || to == nil {
			continue
		}
		if err := copySockets(lru, from, to, nil, f); err != nil && !isNoRoom(err) {
			return fmt.Errorf("copy %s to %s: %w", lru, hash, err)
		}
	}
	return nil
}

// Rejoin makes of m, and of maps of sockets that only programs have, the table that uses the larger one of each two, with
// those that came from elsewhere in Created; former has the other ones. They share the maps' content with m and left.
func (m *Maps) Rejoin(left *Maps) (grown, former *Maps, err error) {
	grown, former = &Maps{byName: map[MapName]*ebpf.Map{}}, &Maps{byName: map[MapName]*ebpf.Map{}}
	for _, info := range mapTable {
		larger, other := m.Map(info.Name), left.Map(info.Name)
		if other != nil && other.MaxEntries() > larger.MaxEntries() {
			larger, other = other, larger
			grown.Created = append(grown.Created, info.Name)
		}
		if grown.byName[info.Name], err = larger.Clone(); err == nil && info.PerSocket {
			if other == nil {
				other = larger
			}
			former.byName[info.Name], err = other.Clone()
		}
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("share map %s: %w", info.Name, err), grown.Close(), former.Close())
		}
	}
	return grown, former, nil
}

// OutgrownBy opens the maps of sockets that attached programs use and that are not those of m: who exchanged them was
// killed. nil: there are none. The caller closes what it gets.
func (m *Maps) OutgrownBy(progs []*ebpf.Program) (*Maps, error) {
	own, err := m.ids()
	if err != nil {
		return nil, err
	}
	specs, err := specs(Sizes{})
	if err != nil {
		return nil, err
	}
	found := &Maps{byName: map[MapName]*ebpf.Map{}}
	seen := map[ebpf.MapID]bool{}
	for _, p := range progs {
		info, err := p.Info()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("read program info: %w", err), found.Close())
		}
		ids, _ := info.MapIDs()
		for _, id := range ids {
			if own[id] || seen[id] {
				continue
			}
			seen[id] = true
			other, err := ebpf.NewMapFromID(id)
			if err != nil {
				continue // gone with its program
			}
			if name := socketMap(other, specs); name != "" && found.byName[name] == nil {
				found.byName[name] = other
				continue
			}
			other.Close()
		}
	}
	if len(found.byName) == 0 {
		return nil, nil
	}
	return found, nil
}

// socketMap is which of the maps of sockets a map could be; "": none.
func socketMap(m *ebpf.Map, specs map[MapName]*ebpf.MapSpec) MapName {
	info, err := m.Info()
	if err != nil {
		return ""
	}
	for name := range outgrownMaps {
		if slices.Contains(name.Info().kernelNames(), info.Name) && sameShape(m, specs[name]) {
			return name
		}
	}
	return ""
}
