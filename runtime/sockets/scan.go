package sockets

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// target is a socket by its cookie, and the backend that it must still be
// connected with to be destroyed. One UDP socket may have had several.
type target struct {
	cookie  uint64
	backend netip.AddrPort
}

// lost are the backends of a protocol that are gone.
type lost map[netip.AddrPort][]Backend

func lostOf(gone []Backend, p bpf.Proto) lost {
	w := lost{}
	for _, b := range gone {
		if b.Proto == p {
			at := netip.AddrPortFrom(b.Addr.Addr().Unmap(), b.Addr.Port())
			w[at] = append(w[at], b)
		}
	}
	return w
}

// has reports whether a backend is gone for a service; index 0 is not known.
func (w lost) has(at netip.AddrPort, index uint32) bool {
	for _, b := range w[at] {
		if b.Index == 0 || index == 0 || b.Index == index {
			return true
		}
	}
	return false
}

// findUDP reads the way back of UDP sockets.
func findUDP(m *ebpf.Map, batch bool, w lost) (map[target]bool, error) {
	found := map[target]bool{}
	err := readMap(m, batch, func(k *bpf.UDPRevNatKey, v *bpf.UDPRevNat) {
		at := netip.AddrPortFrom(k.Backend.Addr(), k.Port.Uint16())
		if w.has(at, v.Index) {
			found[target{k.Cookie, at}] = true
		}
	})
	return found, err
}

// findTCP reads the way back of TCP sockets. What another socket has
// overwritten is forgotten: an array has one place for many cookies.
func findTCP(m *ebpf.Map, batch bool, w lost) (map[target]bool, error) {
	found := map[target]bool{}
	err := readMap(m, batch, func(_ *uint32, p *bpf.SockRevNat) {
		if p.Cookie == 0 {
			return
		}
		if at := netip.AddrPortFrom(p.Backend.Addr(), p.BackendPort.Uint16()); w.has(at, 0) {
			found[target{p.Cookie, at}] = true
		}
	})
	return found, err
}

// readChunk is how many entries one system call copies: few enough to stay in a
// cache, many enough that the calls don't count.
const readChunk = 2048

// readMap calls each for the entries of a map that others write meanwhile. What
// the lock of an array's elements guards is read under it.
func readMap[K, V any](m *ebpf.Map, batch bool, each func(*K, *V)) error {
	locked := m.Type() == ebpf.Array // the peers
	if !batch {
		return readOneByOne(m, locked, each)
	}
	var opts ebpf.BatchOptions
	if locked {
		opts.ElemFlags = uint64(ebpf.LookupLock)
	}
	var cursor ebpf.MapBatchCursor
	size := min(readChunk, int(m.MaxEntries()))
	keys, values := make([]K, size), make([]V, size)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, &opts)
		for i := range n {
			each(&keys[i], &values[i])
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return nil
		case errors.Is(err, unix.ENOSPC): // a hash bucket that is larger than the chunk
			return readOneByOne(m, locked, each)
		case err != nil:
			return fmt.Errorf("read map %v: %w", m, err)
		}
	}
}

// readOneByOne begins again where an entry goes while it is the last one read;
// it may then miss some, as the end comes after as many steps as the map has
// entries at most. The map's own iterator would give up with an error.
func readOneByOne[K, V any](m *ebpf.Map, locked bool, each func(*K, *V)) error {
	var key K
	var value V
	var flags ebpf.MapLookupFlags
	if locked {
		flags = ebpf.LookupLock
	}
	var from any
	for range m.MaxEntries() {
		err := m.NextKey(from, &key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
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
		each(&key, &value)
	}
	return nil
}
