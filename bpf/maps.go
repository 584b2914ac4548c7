package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

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
// exists keeps its size. A zero field stands for the default of lib/maps.h.
type Sizes struct {
	Frontends uint32 // addresses and ports that clients connect to
	Services  uint32 // service indexes
	Backends  uint32 // slots over all sets, two sets of a Service during a change
	Ranges    uint32 // source ranges, and those of the Service range
}

// MaxEntries bounds each of the sizes, whoever asks for it: a flag, or a table
// that grows. Without it a slip of a digit, or a tenant, could take all memory.
const MaxEntries = 1 << 24

// apply gives the maps of a specification their sizes.
func (s Sizes) apply(spec *ebpf.CollectionSpec) {
	set := func(name MapName, n uint32) {
		if n != 0 {
			spec.Maps[name.Kernel()].MaxEntries = n
		}
	}
	set(MapFrontend, s.Frontends)
	set(MapService, s.Services*2)
	set(MapCounter, s.Services)
	set(MapBackend, s.Backends)
	set(MapRange, s.Ranges)
}

// Maps are the open maps of a NAT table. Not safe for concurrent use.
type Maps struct {
	byName  map[MapName]*ebpf.Map
	known   map[ebpf.MapID]bool // see ids
	Created []MapName           // those that EnsureMaps created, in order
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

// OpenMaps opens the pinned maps of a table that must exist: its error matches
// os.ErrNotExist where one is missing that every version has. With readOnly nothing can be written
// through the handles.
func OpenMaps(pins Pins, readOnly bool) (*Maps, error) {
	spec, err := specs()
	if err != nil {
		return nil, err
	}
	m := &Maps{byName: map[MapName]*ebpf.Map{}}
	for _, name := range MapNames() {
		bm, err := openPinned(pins.Map(name), spec.Maps[name.Kernel()], readOnly)
		if errors.Is(err, os.ErrNotExist) && name.later() {
			continue
		}
		if err != nil {
			m.Close()
			return nil, err
		}
		m.byName[name] = bm
	}
	if err := m.checkMeta(pins); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// EnsureMaps opens the maps of a table and creates those that are missing.
// It may be killed at any instant: what it has created by then is opened by
// the next call. On an error, what this call created is unpinned again.
//
// The caller holds the instance's lock.
func EnsureMaps(pins Pins, sizes Sizes) (*Maps, error) {
	spec, err := specs()
	if err != nil {
		return nil, err
	}
	sizes.apply(spec)
	if err := newerLayout(pins); err != nil {
		return nil, err
	}
	for _, dir := range []string{pins.Dir, pins.Maps()} {
		if err := EnsureDir(dir); err != nil {
			return nil, err
		}
	}
	m := &Maps{byName: map[MapName]*ebpf.Map{}}
	if err := m.ensureAll(pins, spec); err != nil {
		m.Discard(pins)
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Maps) ensureAll(pins Pins, spec *ebpf.CollectionSpec) error {
	var missing []MapName
	for _, name := range MapNames() {
		bm, err := openPinned(pins.Map(name), spec.Maps[name.Kernel()], false)
		switch {
		case errors.Is(err, os.ErrNotExist):
			missing = append(missing, name)
		case err != nil:
			return err
		default:
			m.byName[name] = bm
		}
	}
	if err := m.create(missing, spec); err != nil {
		return err
	}
	for _, name := range missing {
		if err := m.Map(name).Pin(pins.Map(name)); err != nil {
			return fmt.Errorf("pin map: %w", err)
		}
		m.Created = append(m.Created, name)
	}
	meta, err := m.Meta()
	if err != nil {
		return err
	}
	if meta == (Meta{}) { // created just now, or by a run that was killed before it got here
		return m.putMeta(Meta{ABI: LayoutVersion, Owner: MetaOwner})
	}
	return m.checkMeta(pins)
}

// create creates maps side by side: the kernel clears a few MiB for them.
func (m *Maps) create(names []MapName, spec *ebpf.CollectionSpec) error {
	created := make([]*ebpf.Map, len(names))
	var group errgroup.Group
	for i, name := range names {
		group.Go(func() (err error) {
			ms := spec.Maps[name.Kernel()]
			if created[i], err = ebpf.NewMap(ms); err != nil {
				return fmt.Errorf("create map %s with %d entries: %w", ms.Name, ms.MaxEntries, explainMemory(err))
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

// Discard unpins what EnsureMaps created: for an init stage whose proof failed.
func (m *Maps) Discard(pins Pins) error {
	var errs []error
	for _, name := range m.Created {
		if err := os.Remove(pins.Map(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("unpin map: %w", err))
		}
	}
	m.Created = nil
	RemoveEmptyDirs(pins)
	return errors.Join(errs...)
}

// RemoveMaps unpins the maps of a table, or of what a killed run left of one.
// What isn't ours stays, and is an error that matches ErrForeign. meta goes
// last: it says whose the others are.
func RemoveMaps(pins Pins) error {
	spec, err := specs()
	if err != nil {
		return err
	}
	if err := ownMeta(pins, spec); err != nil {
		return err
	}
	var errs []error
	for _, name := range slices.Backward(MapNames()) {
		for _, pin := range []string{pins.Map(name) + growSuffix, pins.Map(name)} {
			if err := removeMap(pin, spec.Maps[name.Kernel()]); err != nil {
				errs = append(errs, fmt.Errorf("unpin map: %w", err))
			}
		}
	}
	return errors.Join(errs...)
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

// ownMeta refuses a table that is marked as somebody else's.
func ownMeta(pins Pins, spec *ebpf.CollectionSpec) error {
	meta, err := openPinned(pins.Map(MapMeta), spec.Maps[MapMeta.Kernel()], true)
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

func (m *Maps) checkMeta(pins Pins) error {
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

// OtherLayouts lists the pins of other layout versions beside ours.
func OtherLayouts(pins Pins) (paths []string, newest uint32, err error) {
	entries, err := os.ReadDir(pins.Maps())
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("list pinned maps: %w", err)
	}
	for _, e := range entries {
		if _, layout, ok := ParseMapPin(e.Name()); ok && layout != LayoutVersion {
			paths = append(paths, filepath.Join(pins.Maps(), e.Name()))
			newest = max(newest, layout)
		}
	}
	return paths, newest, nil
}

func newerLayout(pins Pins) error {
	paths, _, err := OtherLayouts(pins)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if _, layout, _ := ParseMapPin(filepath.Base(path)); layout > LayoutVersion {
			return fmt.Errorf("%s is of layout %d, this firsthop knows %d: use the newer firsthop, or uninstall with it first: %w",
				path, layout, LayoutVersion, ErrNewerLayout)
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
	if m.Type() != want.Type || m.KeySize() != want.KeySize || m.ValueSize() != want.ValueSize {
		defer m.Close()
		return nil, fmt.Errorf("%s is a %v map with %d byte keys and %d byte values, layout %d has %v, %d, %d: move it away if nothing needs it: %w",
			path, m.Type(), m.KeySize(), m.ValueSize(), LayoutVersion, want.Type, want.KeySize, want.ValueSize, ErrForeign)
	}
	return m, nil
}

// PutGeneration notes the highest set id that was ever given out.
func (m *Maps) PutGeneration(g uint64) error {
	return m.putMeta(Meta{ABI: LayoutVersion, Owner: MetaOwner, Generation: g})
}
