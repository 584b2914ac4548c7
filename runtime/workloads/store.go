package workloads

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// ErrFull says that the map has no space for another namespace. Those that have
// none are served, and are in no source range.
var ErrFull = errors.New("the workload map is full")

// Table is the content of both maps.
type Table struct {
	Workloads map[uint64]bpf.Workload // by the cookie of the network namespace
	Control   bpf.Control             // this package's bits of it
}

// Store is where the table is. It has one writer.
type Store interface {
	Read() (Table, error)
	// Put writes an entry; its error matches ErrFull where there is no space.
	Put(cookie uint64, w bpf.Workload) error
	// Delete removes an entry; one that isn't there is no error.
	Delete(cookie uint64) error
	// SetControl writes the bits of this package and leaves all others.
	SetControl(c bpf.Control) error
}

// ownControl are the bits of the control word that are this package's.
const ownControl = bpf.ControlOptOut

// Kernel is the Store that the programs read.
type Kernel struct {
	workload, control *ebpf.Map
}

var _ Store = (*Kernel)(nil)

// NewKernel makes a Store of open maps.
func NewKernel(m *bpf.Maps) *Kernel {
	return &Kernel{workload: m.Map(bpf.MapWorkload), control: m.Map(bpf.MapControl)}
}

// Read implements Store.
func (k *Kernel) Read() (Table, error) {
	t := Table{Workloads: map[uint64]bpf.Workload{}}
	c, err := k.readControl()
	if err != nil {
		return Table{}, err
	}
	t.Control = c & ownControl
	var cookie uint64
	var w bpf.Workload
	it := k.workload.Iterate()
	for it.Next(&cookie, &w) {
		t.Workloads[cookie] = w
	}
	if err := it.Err(); err != nil {
		return Table{}, fmt.Errorf("read workload map: %w", err)
	}
	return t, nil
}

func (k *Kernel) readControl() (c bpf.Control, err error) {
	if err := k.control.Lookup(uint32(0), &c); err != nil {
		return 0, fmt.Errorf("read control map: %w", err)
	}
	return c, nil
}

// Put implements Store.
func (k *Kernel) Put(cookie uint64, w bpf.Workload) error {
	err := k.workload.Put(cookie, w)
	if errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("%w: it holds %d", ErrFull, k.workload.MaxEntries())
	}
	if err != nil {
		return fmt.Errorf("write workload map: %w", err)
	}
	return nil
}

// Delete implements Store.
func (k *Kernel) Delete(cookie uint64) error {
	if err := k.workload.Delete(cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete from workload map: %w", err)
	}
	return nil
}

// SetControl implements Store.
func (k *Kernel) SetControl(c bpf.Control) error {
	now, err := k.readControl()
	if err != nil {
		return err
	}
	if next := now&^ownControl | c&ownControl; next != now {
		if err := k.control.Put(uint32(0), next); err != nil {
			return fmt.Errorf("write control map: %w", err)
		}
	}
	return nil
}

// apply makes a store's content what it should be, so that programs see each
// namespace as it was or as it will be: they look for entries only while the
// control bit is set, so that comes last and goes first. now is kept up to date.
//
// Entries that are as they should be aren't written: the update of a hash
// element isn't atomic for readers. It continues after an error and returns all.
func apply(s Store, now *Table, want Table) (writes int, err error) {
	var errs []error
	do := func(err error, done func()) {
		if err != nil {
			errs = append(errs, err)
			return
		}
		writes++
		done()
	}
	control := func() {
		if now.Control != want.Control {
			do(s.SetControl(want.Control), func() { now.Control = want.Control })
		}
	}
	if want.Control&bpf.ControlOptOut == 0 {
		control()
	}
	for _, cookie := range slices.Sorted(maps.Keys(now.Workloads)) {
		if _, ok := want.Workloads[cookie]; !ok {
			do(s.Delete(cookie), func() { delete(now.Workloads, cookie) })
		}
	}
	for _, cookie := range inOrderOfNeed(want.Workloads) {
		w := want.Workloads[cookie]
		if former, ok := now.Workloads[cookie]; ok && former == w {
			continue
		}
		err := s.Put(cookie, w)
		do(err, func() { now.Workloads[cookie] = w })
		if errors.Is(err, ErrFull) {
			break // and so for all that follow
		}
	}
	control()
	return writes, errors.Join(errs...)
}

// inOrderOfNeed puts those that opted out first: should the map be full, then of the others.
func inOrderOfNeed(m map[uint64]bpf.Workload) []uint64 {
	return slices.SortedFunc(maps.Keys(m), func(a, b uint64) int {
		return cmp.Or(cmp.Compare(m[b].Flags&bpf.WorkloadOptedOut, m[a].Flags&bpf.WorkloadOptedOut), cmp.Compare(a, b))
	})
}
