package bpf

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// The hooks of an uplink, in the order in which they are attached: the way back comes first, so that no
// flow begins whose answers would not be translated.
var uplinkHooks = []Hook{
	{Name: "to_uplink", Attach: ebpf.AttachTCXEgress},
	{Name: "from_uplink", Attach: ebpf.AttachTCXIngress},
}

// UplinkHooks are the hooks of an uplink, in the order in which they are attached.
func UplinkHooks() []Hook { return append([]Hook(nil), uplinkHooks...) }

var (
	parsedFromUplink = sync.OnceValues(loadFromUplink)
	parsedToUplink   = sync.OnceValues(loadToUplink)
)

// uplinkObject is the embedded object of a hook, and its bytes.
func uplinkObject(h Hook) (*ebpf.CollectionSpec, []byte, error) {
	if h.Attach == ebpf.AttachTCXIngress {
		spec, err := parsedFromUplink()
		return spec, _FromUplinkBytes, err
	}
	spec, err := parsedToUplink()
	return spec, _ToUplinkBytes, err
}

// Uplink says for which kind of devices programs are.
type Uplink struct {
	L3 bool // devices whose packets have no link header
}

func (u Uplink) settings(object []byte) UplinkSettings {
	s := UplinkSettings{HeaderLen: 14}
	if u.L3 {
		s.HeaderLen = 0
	}
	h := sha256.New()
	h.Write(object)
	fmt.Fprintf(h, "%+v", s)
	s.Build = binary.LittleEndian.Uint64(h.Sum(nil))
	return s
}

// Load loads the programs of an uplink against the maps of a table and of the packet path, by the names of their hooks. All
// are loaded or none. The caller closes them; a program that is attached stays. Linux 5.3.
func (u Uplink) Load(table *Maps, packet *PacketMaps) (map[string]*ebpf.Program, error) {
	progs := map[string]*ebpf.Program{}
	for _, h := range uplinkHooks {
		p, err := u.load(h, table, packet)
		if err != nil {
			for _, p := range progs {
				p.Close()
			}
			return nil, err
		}
		progs[h.Name] = p
	}
	return progs, nil
}

func (u Uplink) load(h Hook, table *Maps, packet *PacketMaps) (*ebpf.Program, error) {
	object, bytes, err := uplinkObject(h)
	if err != nil {
		return nil, fmt.Errorf("parse embedded object: %w", err)
	}
	spec := object.Copy()
	if err := spec.Variables["settings"].Set(u.settings(bytes)); err != nil {
		return nil, fmt.Errorf("set the settings of %s: %w", h.Program(), err)
	}
	replace := map[string]*ebpf.Map{}
	for _, maps := range []map[MapName]*ebpf.Map{table.byName, packet.byName} {
		for name, bm := range maps {
			kernel := name.Info().Kernel
			if want := spec.Maps[kernel]; want != nil {
				want.MaxEntries = bm.MaxEntries()
				replace[kernel] = bm
			}
		}
	}
	if packet.Map(MapEvents) == nil {
		if err := withoutEvents(spec); err != nil {
			return nil, err
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", h.Program(), err)
	}
	defer coll.Close()
	return coll.DetachProgram(h.Program()), nil
}

// withoutEvents has programs tell nobody what happens: Linux below 5.8 has no ring buffers.
func withoutEvents(spec *ebpf.CollectionSpec) error {
	spec.Maps[MapEvents.Info().Kernel] = &ebpf.MapSpec{Name: MapEvents.Info().Kernel, Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	for _, p := range spec.Programs {
		if err := replaceCalls(p, func(fn asm.BuiltinFunc) bool { return fn == asm.FnRingbufOutput }); err != nil {
			return err
		}
	}
	return nil
}

// Inspect asks the kernel what a program is: ours if it uses maps of packet, which names and tags could not tell.
// current: it is what Load would load for a hook. table and packet may be nil: then no program is ours.
func (u Uplink) Inspect(p *ebpf.Program, table *Maps, packet *PacketMaps) (is Loaded, current bool, err error) {
	info, err := p.Info()
	if err != nil {
		return Loaded{}, false, fmt.Errorf("read program info: %w", err)
	}
	id, _ := info.ID()
	is = Loaded{ID: id, Name: info.Name}
	used, ok := info.MapIDs()
	if table == nil || packet == nil || !ok {
		return is, false, nil
	}
	known, err := table.ids()
	if err != nil {
		return Loaded{}, false, err
	}
	flows, err := packet.ids()
	if err != nil {
		return Loaded{}, false, err
	}
	ours, others := usesOf(used, func(id ebpf.MapID) bool { return flows[id] })
	is.Ours = ours
	_, others = usesOf(others, func(id ebpf.MapID) bool { return known[id] })
	if !ours || len(others) != 1 { // more: it uses a map that is no longer of this table
		return is, false, nil
	}
	s, err := readRodata[UplinkSettings](others[0])
	if err != nil {
		return is, false, err
	}
	for _, h := range uplinkHooks {
		_, bytes, err := uplinkObject(h)
		if err != nil {
			return is, false, fmt.Errorf("parse embedded object: %w", err)
		}
		if s == u.settings(bytes) {
			return is, h.Program() == is.Name, nil
		}
	}
	return is, false, nil
}

// ids are the kernel's ids of the maps, asked for once.
func (m *PacketMaps) ids() (map[ebpf.MapID]bool, error) {
	if m.known != nil {
		return m.known, nil
	}
	ids, err := idsOf(m.byName)
	m.known = ids
	return ids, err
}
