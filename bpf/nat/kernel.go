package nat

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// Kernel is the table in the kernel's maps. Writers hold the instance's lock;
// reading needs none.
type Kernel struct {
	maps  *bpf.Maps
	batch bool
}

var _ Store = (*Kernel)(nil)

// NewKernel makes a Store of open maps. It uses batch operations where the
// kernel has them (5.6), else one system call an entry.
func NewKernel(maps *bpf.Maps, features bpf.Features) *Kernel {
	return &Kernel{maps: maps, batch: features.Batch}
}

// Read implements Store. While another writes, the copy may mix two states.
func (k *Kernel) Read() (*State, error) {
	meta, err := k.maps.Meta()
	if err != nil {
		return nil, err
	}
	states := k.maps.Map(bpf.MapService)
	s := NewState(k.maps.Services())
	s.Generation = meta.Generation
	s.Capacity = Capacity{
		Frontends: int(k.maps.Map(bpf.MapFrontend).MaxEntries()),
		Backends:  int(k.maps.Map(bpf.MapBackend).MaxEntries()),
	}
	if ranges := k.maps.Map(bpf.MapSourceRange); ranges != nil {
		s.Capacity.SourceRanges = int(ranges.MaxEntries())
	}
	highest, read := InitIndexes.Last, bpf.ReadConfig{Batch: k.batch}
	err = errors.Join(
		bpf.ReadMap(k.maps.Map(bpf.MapFrontend), read, func(key *bpf.FrontendKey, fe *bpf.Frontend) bool {
			s.Frontends[*key] = *fe
			highest = max(highest, fe.Index)
			return true
		}),
		// An index above those in use may have a state that a killed writer left;
		// the one who next uses the index overwrites it.
		bpf.ReadMap(states, read, func(at *uint32, w *bpf.ServiceState) bool {
			if *w != 0 {
				s.ServiceStates[*at] = *w
			}
			return *at < bpf.ServiceStateAt(highest, true)
		}),
		bpf.ReadMap(k.maps.Map(bpf.MapBackend), read, func(key *bpf.BackendKey, be *bpf.Backend) bool {
			if s.Sets[key.Set] == nil {
				s.Sets[key.Set] = map[uint32]bpf.Backend{}
			}
			s.Sets[key.Set][key.Slot] = *be
			return true
		}),
		k.readSourceRanges(s),
	)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (k *Kernel) readSourceRanges(s *State) error {
	ranges := k.maps.Map(bpf.MapSourceRange)
	if ranges == nil {
		return nil
	}
	return bpf.ReadMap(ranges, bpf.ReadConfig{}, func(key *bpf.SourceRangeKey, _ *uint8) bool { // no batches on a trie before 5.19
		s.SourceRanges[*key] = true
		return true
	})
}

// Generation is the highest set id that any writer ever gave out.
func (k *Kernel) Generation() (uint64, error) {
	meta, err := k.maps.Meta()
	return meta.Generation, err
}

// ResetCounters makes service indexes count from zero.
func (k *Kernel) ResetCounters(indexes []uint32) error {
	if err := put(k.maps.Map(bpf.MapCounter), k.batch, indexes, make([]bpf.Counters, len(indexes))); err != nil {
		return fmt.Errorf("reset counters: %w", err)
	}
	return nil
}

// PutGeneration implements Store.
func (k *Kernel) PutGeneration(g uint64) error { return k.maps.PutGeneration(g) }

// PutBackends implements Store.
func (k *Kernel) PutBackends(keys []bpf.BackendKey, values []bpf.Backend) error {
	return put(k.maps.Map(bpf.MapBackend), k.batch, keys, values)
}

// DeleteBackends implements Store.
func (k *Kernel) DeleteBackends(keys []bpf.BackendKey) error {
	return remove(k.maps.Map(bpf.MapBackend), keys)
}

// PutFrontends implements Store. Programs look for node ports at other nodes when it
// has told them to, which is before there are any.
func (k *Kernel) PutFrontends(keys []bpf.FrontendKey, values []bpf.Frontend) error {
	if err := k.putNodePorts(keys); err != nil {
		return err
	}
	return put(k.maps.Map(bpf.MapFrontend), k.batch, keys, values)
}

// putNodePorts sets the bits of node ports at other nodes.
func (k *Kernel) putNodePorts(keys []bpf.FrontendKey) error {
	var add, blocks uint64
	for _, key := range keys {
		if key.AtNodes() {
			add |= bpf.NodePortBlock(key.Port.Uint16())
		}
	}
	m := k.maps.Map(bpf.MapNodePorts)
	if add == 0 || m == nil {
		return nil
	}
	if err := m.Lookup(uint32(0), &blocks); err != nil {
		return fmt.Errorf("read node ports: %w", err)
	}
	if blocks&add == add {
		return nil
	}
	if err := m.Put(uint32(0), blocks|add); err != nil {
		return fmt.Errorf("write node ports: %w", err)
	}
	return nil
}

// DeleteFrontends implements Store.
func (k *Kernel) DeleteFrontends(keys []bpf.FrontendKey) error {
	return remove(k.maps.Map(bpf.MapFrontend), keys)
}

// PutSourceRanges implements Store.
func (k *Kernel) PutSourceRanges(keys []bpf.SourceRangeKey) error {
	return put(k.maps.Map(bpf.MapSourceRange), false, keys, make([]uint8, len(keys)))
}

// DeleteSourceRanges implements Store.
func (k *Kernel) DeleteSourceRanges(keys []bpf.SourceRangeKey) error {
	return remove(k.maps.Map(bpf.MapSourceRange), keys)
}

// PutServiceStates implements Store. In a batch, too, the kernel stores one element after the other as it would by itself.
func (k *Kernel) PutServiceStates(at []uint32, states []bpf.ServiceState) error {
	return put(k.maps.Map(bpf.MapService), k.batch, at, states)
}

func put[K, V any](m *ebpf.Map, batch bool, keys []K, values []V) error {
	if batch && len(keys) > 1 {
		n, err := m.BatchUpdate(keys, values, nil)
		if err != nil {
			return fullMap(m, fmt.Errorf("write entry %d of %d: %w", n, len(keys), err))
		}
		return nil
	}
	for i := range keys {
		if err := m.Put(keys[i], values[i]); err != nil {
			return fullMap(m, fmt.Errorf("write entry %d of %d: %w", i, len(keys), err))
		}
	}
	return nil
}

// fullMap adds to the kernel's E2BIG what it means. The error matches ErrFull.
func fullMap(m *ebpf.Map, err error) error {
	if !errors.Is(err, unix.E2BIG) {
		return err
	}
	return fmt.Errorf("map with %d entries: %w (%w)", m.MaxEntries(), ErrFull, err)
}

// remove doesn't use batches: a batch stops at the first key that is missing.
func remove[K any](m *ebpf.Map, keys []K) error {
	for _, key := range keys {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove entry: %w", err)
		}
	}
	return nil
}

// Synchronize implements Store. MEMBARRIER_CMD_GLOBAL is synchronize_rcu()
// (Linux 4.3, kernel/sched/membarrier.c), and cgroup programs run inside an RCU
// read section. It isn't there on nohz_full kernels, and returns at once where
// one CPU is online, though a program may be preempted there: then a time that no
// program takes.
func (k *Kernel) Synchronize() error {
	const cmdGlobal = 1 << 0 // MEMBARRIER_CMD_GLOBAL
	if !oneCPU() {
		if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, cmdGlobal, 0, 0); errno == 0 {
			return nil
		}
	}
	time.Sleep(100 * time.Millisecond)
	return nil
}

// oneCPU reports whether the machine has one CPU online. They come and go.
func oneCPU() bool {
	online, err := os.ReadFile("/sys/devices/system/cpu/online")
	return err == nil && !strings.ContainsAny(strings.TrimSpace(string(online)), "-,")
}
