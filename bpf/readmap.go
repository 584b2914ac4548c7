package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ReadConfig says how ReadMap reads.
type ReadConfig struct {
	// Batch: the kernel has batch operations (Features.Batch).
	Batch bool
	// Lock: each value is read under its spin lock.
	Lock bool
}

// readChunk is how many entries one system call copies: few enough to stay in a cache, many enough that the calls don't
// count.
const readChunk = 2048

// ReadMap calls each for the entries of a map until it returns false. Where others change the map meanwhile, an entry
// that goes while it is the last one read makes it begin again: some may then be missed, and the error is
// [ebpf.ErrIterationAborted].
func ReadMap[K, V any](m *ebpf.Map, cfg ReadConfig, each func(*K, *V) bool) error {
	if !cfg.Batch {
		return readOneByOne(m, cfg.Lock, each)
	}
	var opts ebpf.BatchOptions
	if cfg.Lock {
		opts.ElemFlags = uint64(ebpf.LookupLock)
	}
	var cursor ebpf.MapBatchCursor
	size := min(readChunk, int(m.MaxEntries()))
	keys, values := make([]K, size), make([]V, size)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, &opts)
		for i := range n {
			if !each(&keys[i], &values[i]) {
				return nil
			}
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return nil
		case errors.Is(err, unix.ENOSPC): // a hash bucket that is larger than the chunk
			return readOneByOne(m, cfg.Lock, each)
		case err != nil:
			return fmt.Errorf("read map %v: %w", m, err)
		}
	}
}

func readOneByOne[K, V any](m *ebpf.Map, lock bool, each func(*K, *V) bool) error {
	var key K
	var value V
	var flags ebpf.MapLookupFlags
	if lock {
		flags = ebpf.LookupLock
	}
	var from any
	for step := uint32(0); ; step++ {
		err := m.NextKey(from, &key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err == nil && step == m.MaxEntries() {
			err = ebpf.ErrIterationAborted
		}
		if err != nil {
			return fmt.Errorf("read map %v: %w", m, err)
		}
		from = key
		if err := m.LookupWithFlags(key, &value, flags); errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		} else if err != nil {
			return fmt.Errorf("read map %v: %w", m, err)
		}
		if !each(&key, &value) {
			return nil
		}
	}
}
