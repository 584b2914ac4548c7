package bpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// What programs remember of sockets, when it moves from one map to another while programs change both.

// Outgrow has the programs that are loaded for m look for sockets in the maps of former, too, which are smaller. It
// reports whether there are any. former stays open until Settle.
func (m *Maps) Outgrow(former *Maps) bool {
	if !slices.ContainsFunc(m.Created, func(name MapName) bool { return outgrownMaps[name] != "" }) {
		return false
	}
	m.outgrown = former
	return true
}

// Settle takes Outgrow back: all sockets of the smaller maps are in those of m.
func (m *Maps) Settle() { m.outgrown = nil }

// CopySockets copies what programs remember of sockets from those maps of m that to has others for. What is there
// already is newer, and stays. Entries that programs add to m meanwhile may be missed.
func (m *Maps) CopySockets(to *Maps, f Features) error {
	for name := range outgrownMaps {
		from, into := m.Map(name), to.Map(name)
		if from == nil || into == nil {
			continue
		}
		a, err := mapID(from)
		if err != nil {
			return err
		}
		b, err := mapID(into)
		if err != nil {
			return err
		}
		if a == b {
			continue
		}
		if err := copySockets(name, from, into, f); err != nil {
			return fmt.Errorf("copy %s: %w", name, err)
		}
	}
	return nil
}

func copySockets(name MapName, from, to *ebpf.Map, f Features) error {
	switch name {
	case MapUDPSockRevNat, MapUDPRevNat:
		return copyNew[UDPRevNatKey, UDPRevNat](from, to, f)
	case MapUDPSockAffinity, MapSockAffinity:
		return copyNew[SockAffinityKey, SockAffinity](from, to, f)
	}
	return copyTCP(from, to, f)
}

// copyNew copies the entries of a hash that another does not have.
func copyNew[K, V any](from, to *ebpf.Map, f Features) error {
	var failed error
	copyOne := func(k *K, v *V) bool {
		failed = to.Update(k, v, ebpf.UpdateNoExist)
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
	for lru, hash := range map[MapName]MapName{MapUDPRevNat: MapUDPSockRevNat, MapSockAffinity: MapUDPSockAffinity} {
		from, to := m.Map(lru), m.Map(hash)
		if from == nil || to == nil {
			continue
		}
		if err := copySockets(lru, from, to, f); err != nil && !errors.Is(err, unix.E2BIG) && !errors.Is(err, unix.ENOMEM) {
			return fmt.Errorf("copy %s to %s: %w", lru, hash, err)
		}
	}
	return nil
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
