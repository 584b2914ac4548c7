package bpf

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ErrForeign says that something at the place of one of our pins isn't ours.
// It is never touched.
var ErrForeign = errors.New("not firsthop's")

// ErrNewerLayout says that the table on this node was written by a newer
// firsthop, whose layout this one doesn't know.
var ErrNewerLayout = errors.New("table of a newer layout")

// Sizes are the numbers of entries with which maps are created. A map that
// exists keeps its size. A zero field stands for the default of the map's header.
type Sizes struct {
	Frontends    uint32 // addresses and ports that clients connect to
	Services     uint32 // service indexes
	Backends     uint32 // slots over all sets, two sets of a Service during a change
	SourceRanges uint32 // source ranges, and those of the Service range

	// What programs remember of sockets: see NodeSizes.
	UDPSockets  uint32 // pairs of a UDP socket and a backend that it was led to
	UDPSessions uint32 // pairs of an unconnected UDP socket and a Service whose backend it keeps
	TCPSockets  uint32 // TCP sockets that connected last; a power of two
}

// MaxEntries bounds each of the sizes, whether a flag asks for it or a table
// that grows. Without it a slip of a digit, or a tenant, could take all memory.
const MaxEntries = 1 << 24

// parsedMaps is the embedded object that has all maps and no program, parsed once.
var parsedMaps = sync.OnceValues(loadMaps)

// specs are what the maps look like, with the sizes asked for. The caller may change them.
func specs(sizes Sizes) (map[MapName]*ebpf.MapSpec, error) {
	object, err := parsedMaps()
	if err != nil {
		return nil, fmt.Errorf("parse embedded object: %w", err)
	}
	byName := make(map[MapName]*ebpf.MapSpec, len(mapTable))
	for _, info := range mapTable {
		spec := object.Maps[info.Kernel].Copy()
		if n := info.entries(sizes); n != 0 {
			spec.MaxEntries = n
		}
		byName[info.Name] = spec
	}
	return byName, nil
}

// entries is the size given for a map; 0: none is.
func (i MapInfo) entries(s Sizes) uint32 {
	if i.Entries == nil {
		return 0
	}
	return i.Entries(s)
}

// Maps are the open maps of a NAT table. Not safe for concurrent use.
type Maps struct {
	byName map[MapName]*ebpf.Map
	known  map[ebpf.MapID]bool // see ids

	outgrown *Maps // those whose sockets are not all in these yet; nil: there are none

	pinned  []string  // pins that EnsureMaps made
	Created []MapName // those that EnsureMaps created, in order
}

// Map is an open map of the table; nil if a former version made the table, which didn't have it.
func (m *Maps) Map(name MapName) *ebpf.Map { return m.byName[name] }

// Services is the number of service indexes that the table has room for; index
// 0 is nobody's.
func (m *Maps) Services() uint32 { return m.Map(MapService).MaxEntries() / 2 }

// Close closes the handles; pinned maps stay.
func (m *Maps) Close() error {
	var errs []error
	for _, bm := range m.byName {
		errs = append(errs, bm.Close())
	}
	return errors.Join(errs...)
}

// openMaps opens those maps of a table that are pinned, and names the others.
func openMaps(pins Pins, specs map[MapName]*ebpf.MapSpec, readOnly bool) (m *Maps, missing []MapName, err error) {
	m = &Maps{byName: map[MapName]*ebpf.Map{}}
	for _, name := range MapNames() {
		bm, err := openNamed(pins, name, specs, readOnly)
		switch {
		case errors.Is(err, os.ErrNotExist):
			missing = append(missing, name)
		case err != nil:
			return nil, nil, errors.Join(err, m.Close())
		default:
			m.byName[name] = bm
		}
	}
	return m, missing, nil
}

// openNamed opens a map by the first of its pins that is there.
func openNamed(pins Pins, name MapName, specs map[MapName]*ebpf.MapSpec, readOnly bool) (m *ebpf.Map, err error) {
	for _, pin := range pins.MapPins(name) {
		if m, err = openPinned(pin, specs[name], readOnly); !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return m, err
}

// OpenMaps opens the pinned maps of a table that must exist: its error matches
// os.ErrNotExist where one is missing that every version has. With readOnly nothing can be written
// through the handles.
func OpenMaps(pins Pins, readOnly bool) (*Maps, error) { return openTable(pins, nil, readOnly) }

// OpenMapsOf opens the maps of a table of which some pins are gone: by their pins,
// or by programs of ours that use them. It changes nothing. Its error matches
// os.ErrNotExist where a map that every version has is in neither.
func OpenMapsOf(pins Pins, progs []*ebpf.Program) (*Maps, error) {
	return openTable(pins, progs, false)
}

func openTable(pins Pins, progs []*ebpf.Program, readOnly bool) (*Maps, error) {
	specs, err := specs(Sizes{})
	if err != nil {
		return nil, err
	}
	m, missing, err := openMaps(pins, specs, readOnly)
	if err != nil {
		return nil, err
	}
	for _, name := range missing {
		used, err := usedMap(progs, name.Info(), specs[name])
		if err == nil && used == nil && !name.Info().Later {
			err = fmt.Errorf("open pinned map: %w", &os.PathError{Op: "lstat", Path: pins.Map(name), Err: os.ErrNotExist})
		}
		if err != nil {
			return nil, errors.Join(err, m.Close())
		}
		if used != nil {
			m.byName[name] = used
		}
	}
	if err := m.checkMeta(pins); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// CheckMaps says what EnsureMaps would stumble over, and changes nothing: its
// error matches ErrForeign or ErrNewerLayout. Maps that are missing are fine.
func CheckMaps(pins Pins) error {
	if err := newerLayout(pins); err != nil {
		return err
	}
	specs, err := specs(Sizes{})
	if err != nil {
		return err
	}
	for _, name := range MapNames() {
		for _, pin := range pins.MapPins(name) {
			m, err := openPinned(pin, specs[name], true)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			m.Close()
		}
	}
	return checkOwner(pins, specs)
}

// EnsureMaps opens the maps of a table, creates those that are missing, and
// pins those of a former version under their present names, too.
// It may be killed at any instant: what it has created by then is opened by
// the next call. On an error, what this call pinned is unpinned again.
//
// The caller holds the instance's lock.
func EnsureMaps(pins Pins, sizes Sizes) (*Maps, error) {
	if err := newerLayout(pins); err != nil {
		return nil, err
	}
	specs, err := specs(sizes)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{pins.Dir, pins.Maps()} {
		if err := EnsureDir(dir); err != nil {
			return nil, err
		}
	}
	m, missing, err := openMaps(pins, specs, false)
	if err != nil {
		RemoveEmptyDirs(pins)
		return nil, err
	}
	if err := m.complete(pins, missing, specs); err != nil {
		m.Discard(pins)
		m.Close()
		return nil, err
	}
	return m, nil
}

// complete creates what is missing of a table, and has all pins lead to it.
func (m *Maps) complete(pins Pins, missing []MapName, specs map[MapName]*ebpf.MapSpec) error {
	if err := m.checkMeta(pins); err != nil {
		return err
	}
	if err := m.create(missing, specs); err != nil {
		return err
	}
	m.Created = missing
	if slices.Contains(missing, MapNodePorts) && !slices.Contains(missing, MapFrontend) {
		// There may be node ports already: ask for all.
		if err := m.Map(MapNodePorts).Put(uint32(0), ^uint64(0)); err != nil {
			return fmt.Errorf("write node ports: %w", err)
		}
	}
	for _, name := range MapNames() {
		if name.Info().Former == "" && !slices.Contains(missing, name) {
			continue // was opened by its one pin
		}
		made, err := m.ensurePins(pins, name, specs[name])
		m.pinned = append(m.pinned, made...)
		if err != nil {
			return err
		}
	}
	meta, err := m.Meta()
	if err == nil && meta == (Meta{}) { // created just now, or by a run that was killed before it got here
		return m.putMeta(Meta{ABI: LayoutVersion, Owner: MetaOwner})
	}
	return err
}

// create creates maps side by side: the kernel clears a few MiB for them.
func (m *Maps) create(names []MapName, specs map[MapName]*ebpf.MapSpec) error {
	created := make([]*ebpf.Map, len(names))
	var group errgroup.Group
	for i, name := range names {
		group.Go(func() (err error) {
			if created[i], err = createMap(name.Info(), specs[name]); err != nil {
				return fmt.Errorf("create map %s with %d entries: %w", specs[name].Name, specs[name].MaxEntries, explainMemory(err))
			}
			return nil
		})
	}
	err := group.Wait()
	for i, bm := range created {
		if bm != nil {
			m.byName[names[i]] = bm // also after an error: Close closes it
		}
	}
	return err
}

// createMap creates a map. One of sockets, whose size is a guess (NodeSizes), gets the least size where there is no memory
// for more: a node without it would not be served at all.
func createMap(info MapInfo, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(spec)
	if !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.EPERM) || !info.PerSocket || info.Entries == nil {
		return m, err
	}
	object, parseErr := parsedMaps()
	if parseErr != nil {
		return nil, err
	}
	least := object.Maps[info.Kernel].MaxEntries
	if spec.MaxEntries <= least {
		return nil, err
	}
	spec.MaxEntries = least
	return ebpf.NewMap(spec)
}

// explainMemory says whose memory it is that isn't enough, where the kernel
// only says ENOMEM or EPERM: since 5.11 maps are charged to the cgroup of who creates
// them ("bpf: switch to memcg-based memory accounting"), and a machine has the
// few MiB.
func explainMemory(err error) error {
	switch {
	case errors.Is(err, unix.EPERM): // what else it takes, the kernel's check has asked for
		return fmt.Errorf("%w: before Linux 5.11 maps count against RLIMIT_MEMLOCK: add CAP_SYS_RESOURCE, or start with `ulimit -l unlimited`", err)
	case !errors.Is(err, unix.ENOMEM):
		return err
	}
	return fmt.Errorf("%w: maps are charged to the memory limit of this container or unit: raise it (docs/container.md)", err)
}
