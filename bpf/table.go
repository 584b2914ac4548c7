package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// ensurePins has all pins of a map lead to it, which was opened by the first that is there. It returns those that were not.
func (m *Maps) ensurePins(pins Pins, name MapName, spec *ebpf.MapSpec) (made []string, err error) {
	opened := false
	for _, pin := range pins.MapPins(name) {
		if _, err := os.Lstat(pin); err == nil && !opened {
			opened = true
			continue
		}
		there, same, err := leadsTo(pin, spec, m.Map(name))
		switch {
		case err != nil:
			return made, err
		case there && !same:
			err = replacePin(m.Map(name), pin)
		case !there:
			if err = pinMap(m.Map(name), pin); err == nil {
				made = append(made, pin)
			}
		}
		if err != nil {
			return made, err
		}
	}
	return made, nil
}

// leadsTo reports whether there is a pin, and whether it leads to a map. Its error matches ErrForeign.
func leadsTo(pin string, spec *ebpf.MapSpec, m *ebpf.Map) (there, same bool, err error) {
	pinned, err := openPinned(pin, spec, true)
	if errors.Is(err, os.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	defer pinned.Close()
	is, err := mapID(pinned)
	if err != nil {
		return false, false, err
	}
	want, err := mapID(m)
	return true, is == want, err
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("read info of map: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

// pinMap pins a map, which may have other pins: the library would move one that it knows of.
func pinMap(m *ebpf.Map, pin string) error {
	c, err := m.Clone()
	if err != nil {
		return fmt.Errorf("pin map: %w", err)
	}
	defer c.Close()
	if err := c.Pin(pin); err != nil {
		return fmt.Errorf("pin map: %w", err)
	}
	return nil
}

// replacePin has a pin of ours lead to a map, in one step.
func replacePin(m *ebpf.Map, pin string) error {
	next := pin + growSuffix
	if err := removePin(next); err != nil {
		return fmt.Errorf("remove left-over pin: %w", err)
	}
	if err := pinMap(m, next); err != nil {
		return err
	}
	if err := os.Rename(next, pin); err != nil {
		return errors.Join(fmt.Errorf("move pinned map into place: %w", err), os.Remove(next))
	}
	return nil
}

// removePin removes a pin that may not be there.
func removePin(pin string) error {
	if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
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

// Discard unpins what EnsureMaps pinned: for an init stage whose proof failed.
func (m *Maps) Discard(pins Pins) error {
	var errs []error
	for _, pin := range m.pinned {
		if err := removePin(pin); err != nil {
			errs = append(errs, fmt.Errorf("unpin map: %w", err))
		}
	}
	m.Created, m.pinned = nil, nil
	RemoveEmptyDirs(pins)
	return errors.Join(errs...)
}

// RemoveMaps unpins the maps of a table, or of what a killed run left of one.
// What isn't ours stays, and is an error that matches ErrForeign. meta goes
// last: it says whose the others are.
func RemoveMaps(pins Pins) error {
	specs, err := specs(Sizes{})
	if err != nil {
		return err
	}
	if err := checkOwner(pins, specs); err != nil {
		return err
	}
	var errs []error
	for _, name := range slices.Backward(MapNames()) {
		for _, pin := range pins.MapPins(name) {
			for _, pin := range []string{pin + growSuffix, pin} {
				if err := removeMap(pin, specs[name]); err != nil {
					errs = append(errs, fmt.Errorf("unpin map: %w", err))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// checkOwner refuses a table that is marked as somebody else's.
func checkOwner(pins Pins, specs map[MapName]*ebpf.MapSpec) error {
	meta, err := openNamed(pins, MapMeta, specs, true)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	m := &Maps{byName: map[MapName]*ebpf.Map{MapMeta: meta}}
	defer m.Close()
	return m.checkMeta(pins)
}

func removeMap(pin string, want *ebpf.MapSpec) error {
	m, err := openPinned(pin, want, true)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	m.Close()
	return os.Remove(pin)
}

// RemoveEmptyDirs removes those directories of ours that hold nothing.
func RemoveEmptyDirs(pins Pins) {
	for _, dir := range []string{pins.Maps(), pins.Links(), pins.Progs(), pins.Dir} {
		os.Remove(dir) // fails on a directory that isn't empty: that is meant
	}
}

// Meta reads the meta entry; it is zero before the table was first used.
func (m *Maps) Meta() (Meta, error) {
	var meta Meta
	if err := m.Map(MapMeta).Lookup(uint32(0), &meta); err != nil {
		return Meta{}, fmt.Errorf("read meta map: %w", err)
	}
	return meta, nil
}

func (m *Maps) putMeta(meta Meta) error {
	if err := m.Map(MapMeta).Put(uint32(0), meta); err != nil {
		return fmt.Errorf("write meta map: %w", err)
	}
	return nil
}

// checkMeta refuses a table that is marked as somebody else's; one without meta has no owner yet.
func (m *Maps) checkMeta(pins Pins) error {
	if m.Map(MapMeta) == nil {
		return nil
	}
	meta, err := m.Meta()
	if err != nil {
		return err
	}
	switch {
	case meta.Owner == MetaOwner && meta.ABI == LayoutVersion, meta == Meta{}:
		return nil
	case meta.Owner == MetaOwner && meta.ABI > LayoutVersion:
		return fmt.Errorf("%s has layout %d, this firsthop knows %d: use the newer firsthop: %w",
			pins.Map(MapMeta), meta.ABI, LayoutVersion, ErrNewerLayout)
	default:
		return fmt.Errorf("%s is marked owner %#x, layout %d, firsthop's are %#x, %d: move it away if nothing needs it: %w",
			pins.Map(MapMeta), meta.Owner, meta.ABI, MetaOwner, LayoutVersion, ErrForeign)
	}
}

// PutGeneration notes the highest set id that was ever given out.
func (m *Maps) PutGeneration(g uint64) error {
	return m.putMeta(Meta{ABI: LayoutVersion, Owner: MetaOwner, Generation: g})
}

// OtherLayouts lists the pins of other layout versions beside ours.
func OtherLayouts(pins Pins) ([]string, error) {
	entries, err := os.ReadDir(pins.Maps())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pinned maps: %w", err)
	}
	var paths []string
	for _, e := range entries {
		if name, version, ok := ParseMapPin(e.Name()); ok && version != name.Info().Set.Version {
			paths = append(paths, filepath.Join(pins.Maps(), e.Name()))
		}
	}
	return paths, nil
}

func newerLayout(pins Pins) error {
	paths, err := OtherLayouts(pins)
	if err != nil {
		return err
	}
	for _, path := range paths {
		name, version, _ := ParseMapPin(filepath.Base(path))
		if known := name.Info().Set.Version; version > known {
			return fmt.Errorf("%s is of layout %d, this firsthop knows %d: use the newer firsthop, or uninstall with it first: %w",
				path, version, known, ErrNewerLayout)
		}
	}
	return nil
}

// EnsureDir makes a directory for pins, below one that exists. On a bpffs of mode 1777 anybody may have made it before,
// and could take our pins away: one that is not root's alone is an error that matches ErrForeign.
func EnsureDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		return nil
	}
	if !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("create pin directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("look at pin directory: %w", &os.PathError{Op: "lstat", Path: dir, Err: err})
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a directory: move it away if nothing needs it: %w", dir, ErrForeign)
	case st.Uid != uint32(os.Geteuid()):
		return fmt.Errorf("%s belongs to user %d, who could remove pins from it: remove it: %w", dir, st.Uid, ErrForeign)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("others than its owner may write %s, and could remove pins from it: chmod 0700 %s: %w", dir, dir, ErrForeign)
	}
	return nil
}

// openPinned opens a pin and compares what it finds with what the layout
// wants. The number of entries may differ, what they mean may not.
func openPinned(path string, want *ebpf.MapSpec, readOnly bool) (*ebpf.Map, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, fmt.Errorf("open pinned map: %w", &os.PathError{Op: "lstat", Path: path, Err: err})
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK { // one that dangles can be neither opened nor pinned over
		return nil, fmt.Errorf("%s is a symbolic link: move it away if nothing needs it: %w", path, ErrForeign)
	}
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: readOnly})
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("open pinned map %s: %w", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s doesn't hold a BPF map (%s): move it away if nothing needs it: %w", path, err, ErrForeign)
	}
	if !sameShape(m, want) {
		defer m.Close()
		return nil, fmt.Errorf("%s is a %v map with %d byte keys and %d byte values, firsthop's is %v, %d, %d: move it away if nothing needs it: %w",
			path, m.Type(), m.KeySize(), m.ValueSize(), want.Type, want.KeySize, want.ValueSize, ErrForeign)
	}
	return m, nil
}

func sameShape(m *ebpf.Map, want *ebpf.MapSpec) bool {
	return m.Type() == want.Type && m.KeySize() == want.KeySize && m.ValueSize() == want.ValueSize
}
