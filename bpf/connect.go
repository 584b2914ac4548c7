package bpf

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
)

// ErrNoNetnsCookie says that the kernel can't limit the balancer to the host's
// network namespace.
var ErrNoNetnsCookie = errors.New("only the host's network namespace is to be served, which needs bpf_get_netns_cookie (Linux 5.7)")

// parsedConnect is the embedded object of the balancer, parsed once.
var parsedConnect = sync.OnceValues(loadConnect)

// Preload parses the embedded objects, so that the first who needs them finds
// it done: that takes a good part of the time of a run that has nothing else to
// do. Meant to be called in a goroutine of its own, early.
func Preload() {
	parsedMaps()
	parsedConnect()
}

// Balancer says how the connect-time load balancer is to behave.
type Balancer struct {
	Off       bool   // serve nobody: no hook is needed
	UDP       bool   // translate UDP, not only TCP
	HostOnly  bool   // serve only sockets of the host's network namespace (Linux 5.7)
	HostNetns uint64 // cookie of that namespace; 0: not known, so that node ports don't serve loopback addresses
}

// Hooks are the hooks that the balancer needs on a kernel with these features,
// in the order of attachment.
func (b Balancer) Hooks(f Features) []Hook {
	var hooks []Hook
	if b.Off {
		return nil
	}
	for _, h := range Hooks() {
		if h.AvailableWith(f) && (b.UDP || !h.UDP) {
			hooks = append(hooks, h)
		}
	}
	return hooks
}

// noNetns is the cookie of no network namespace: the kernel counts them from 1.
const noNetns = 1<<64 - 1

// settings are what the programs are loaded with. Build covers the object, the
// features that it was cut down to, and the settings themselves: two programs
// with the same Build do the same.
func (b Balancer) settings(m *Maps, f Features) Settings {
	s := Settings{HostNetns: b.HostNetns, RevNatMask: m.Map(MapSockRevNat).MaxEntries() - 1}
	if m.outgrown != nil {
		s.OutgrownMask = m.outgrown.Map(MapSockRevNat).MaxEntries() - 1
	}
	if b.HostNetns == 0 || !f.NetnsCookie {
		s.HostNetns = noNetns
	}
	if b.UDP {
		s.Flags |= SettingsUDP
	}
	if b.HostOnly {
		s.Flags |= SettingsHostScope
	}
	h := sha256.New()
	h.Write(_ConnectBytes)
	fmt.Fprintf(h, "%+v %v %v %v", s, f.NetnsCookie, f.SetRetval, f.ContextSock)
	s.Build = binary.LittleEndian.Uint64(h.Sum(nil))
	return s
}

// LoadPrograms loads the balancer's programs against the maps of m. All are
// loaded or none. The caller closes them; a program that is attached stays.
//
// The kernel verifies one program at a time per loading thread, so the two
// families are loaded side by side.
func LoadPrograms(m *Maps, b Balancer, f Features) (map[string]*ebpf.Program, error) {
	if b.HostOnly && !f.NetnsCookie { // r0 = 0 in the helper's place would serve nobody
		return nil, ErrNoNetnsCookie
	}
	var families [2][]Hook
	for i, h := range b.Hooks(f) {
		families[i%2] = append(families[i%2], h)
	}
	var loaded [2]map[string]*ebpf.Program
	var group errgroup.Group
	for i, hooks := range families {
		group.Go(func() (err error) {
			loaded[i], err = loadPrograms(m, b, f, hooks)
			return err
		})
	}
	err := group.Wait()
	progs := map[string]*ebpf.Program{}
	for _, part := range loaded {
		maps.Copy(progs, part)
	}
	if err != nil {
		for _, p := range progs {
			p.Close()
		}
		return nil, err
	}
	return progs, nil
}

func loadPrograms(m *Maps, b Balancer, f Features, hooks []Hook) (map[string]*ebpf.Program, error) {
	object, err := parsedConnect()
	if err != nil {
		return nil, fmt.Errorf("parse embedded object: %w", err)
	}
	spec := object.Copy()
	if err := spec.Variables[connectVarSettings].Set(b.settings(m, f)); err != nil {
		return nil, fmt.Errorf("set the programs' settings: %w", err)
	}
	replace := map[string]*ebpf.Map{}
	use := func(kernel string, bm *ebpf.Map) {
		if want := spec.Maps[kernel]; want != nil {
			want.MaxEntries = bm.MaxEntries()
			replace[kernel] = bm
		}
	}
	for name, bm := range m.byName {
		use(name.Info().Kernel, bm)
	}
	outgrown := m
	if m.outgrown != nil {
		outgrown = m.outgrown
	}
	for name, kernel := range outgrownMaps {
		if bm := outgrown.Map(name); bm != nil {
			use(kernel, bm)
		} else {
			use(kernel, m.Map(name)) // a former version made the table that grows
		}
	}
	wanted := map[string]*ebpf.ProgramSpec{}
	for _, h := range hooks {
		prog := spec.Programs[h.Program()]
		if err := substitute(prog, f); err != nil {
			return nil, err
		}
		wanted[h.Program()] = prog
	}
	spec.Programs = wanted
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	defer coll.Close()
	progs := map[string]*ebpf.Program{}
	for _, h := range hooks {
		progs[h.Name] = coll.DetachProgram(h.Program())
	}
	return progs, nil
}

// Loaded says what a program in the kernel is: one of ours, on which table,
// with which settings.
type Loaded struct {
	ID       ebpf.ProgramID
	Name     string
	Ours     bool     // uses the maps of m
	Settings Settings // only if Ours
}

// Inspect asks the kernel what a program is. A program is ours if it uses the
// frontend map of m: names and tags can be anyone's.
func Inspect(p *ebpf.Program, m *Maps) (Loaded, error) {
	info, err := p.Info()
	if err != nil {
		return Loaded{}, fmt.Errorf("read program info: %w", err)
	}
	id, _ := info.ID()
	l := Loaded{ID: id, Name: info.Name}
	if m == nil {
		return l, nil
	}
	ids, ok := info.MapIDs()
	if !ok {
		return l, nil
	}
	own, err := m.ids()
	if err != nil {
		return Loaded{}, err
	}
	var others []ebpf.MapID
	l.Ours, others = usesOf(ids, func(id ebpf.MapID) bool { return own[id] })
	if !l.Ours || len(others) != 1 { // more: it uses a map that is no longer of this table
		return l, nil
	}
	l.Settings, err = readRodata[Settings](others[0])
	return l, err
}

// usesOf reports whether a program uses maps of ours, and lists the others that it uses: its .rodata, as a rule.
func usesOf(used []ebpf.MapID, own func(ebpf.MapID) bool) (ours bool, others []ebpf.MapID) {
	for _, id := range used {
		if own(id) {
			ours = true
		} else {
			others = append(others, id)
		}
	}
	return ours, others
}

// Current reports whether a loaded program is the one that LoadPrograms would
// load.
func (b Balancer) Current(l Loaded, m *Maps, f Features) bool {
	return l.Ours && l.Settings == b.settings(m, f)
}

// ids are the kernel's ids of the maps, asked for once.
func (m *Maps) ids() (map[ebpf.MapID]bool, error) {
	if m.known != nil {
		return m.known, nil
	}
	ids, err := idsOf(m.byName)
	m.known = ids
	return ids, err
}

func idsOf(maps map[MapName]*ebpf.Map) (map[ebpf.MapID]bool, error) {
	ids := map[ebpf.MapID]bool{}
	for _, bm := range maps {
		id, err := mapID(bm)
		if err != nil {
			return nil, err
		}
		ids[id] = true
	}
	return ids, nil
}

// readRodata reads the .rodata map of one of our programs. A map that went
// away, or is another's, gives zero settings, which are nobody's.
func readRodata[T any](id ebpf.MapID) (T, error) {
	var s, none T
	m, err := ebpf.NewMapFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, fmt.Errorf("open settings of program: %w", err)
	}
	defer m.Close()
	if m.Type() != ebpf.Array || int(m.ValueSize()) != binary.Size(s) {
		return none, nil
	}
	if err := m.Lookup(uint32(0), &s); err != nil {
		return none, fmt.Errorf("read settings of program: %w", err)
	}
	return s, nil
}
