package workloads

import (
	"errors"
	"maps"
	"sync"

	"github.com/firsthop/firsthop/bpf"
)

// fake is a Store that answers as the programs would, between any two writes.
type fake struct {
	mu      sync.Mutex
	table   Table
	room    int
	reads   int
	writes  int
	observe func(*fake) // after each write, with the lock held
	broken  error
}

var _ Store = (*fake)(nil)

func newFake(room int) *fake {
	return &fake{table: Table{Workloads: map[uint64]bpf.Workload{}}, room: room}
}

// optedOut is opted_out of bpf/lib/workload.h.
func (f *fake) optedOut(cookie uint64) bool {
	return f.table.Control&bpf.ControlOptOut != 0 && f.table.Workloads[cookie].Flags&bpf.WorkloadOptedOut != 0
}

func (f *fake) Read() (Table, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	return Table{Workloads: maps.Clone(f.table.Workloads), Control: f.table.Control}, f.broken
}

func (f *fake) write(fn func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return f.broken
	}
	if err := fn(); err != nil {
		return err
	}
	f.writes++
	if f.observe != nil {
		f.observe(f)
	}
	return nil
}

func (f *fake) Put(cookie uint64, w bpf.Workload) error {
	return f.write(func() error {
		if _, ok := f.table.Workloads[cookie]; !ok && len(f.table.Workloads) >= f.room {
			return errors.Join(ErrFull)
		}
		f.table.Workloads[cookie] = w
		return nil
	})
}

func (f *fake) Delete(cookie uint64) error {
	return f.write(func() error { delete(f.table.Workloads, cookie); return nil })
}

func (f *fake) SetControl(c bpf.Control) error {
	return f.write(func() error { f.table.Control = f.table.Control&^ownControl | c&ownControl; return nil })
}
