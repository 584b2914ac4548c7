package sockets

import (
	"errors"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
)

// Maps are those in which programs remember sockets. They may be others after the table has grown.
type Maps struct {
	// RevNat are the ways back of UDP sockets (bpf.UDPRevNatKey, bpf.UDPRevNat), in the order in which programs ask them.
	RevNat []*ebpf.Map
	// Affinity are the backends that UDP sockets keep (bpf.SockAffinityKey, bpf.SockAffinity).
	Affinity []*ebpf.Map
	// TCP is bpf.MapSockRevNat.
	TCP *ebpf.Map
	// Log is bpf.MapUDPLog; nil: there is none, and all ways back are read whenever something was written.
	Log *ebpf.Map
	// Usage counts what is added to the first of RevNat and Affinity; nil: nothing does.
	Usage *ebpf.Map
	// Batch: the kernel has batch operations (bpf.Features.Batch).
	Batch bool
}

// target is a socket by its cookie, and a backend that it was led to. One UDP socket may have had several.
type target struct {
	cookie  uint64
	backend netip.AddrPort
	proto   bpf.Proto
}

// pair is what a verdict depends on.
type pair struct {
	frontend, backend         bpf.Address
	frontendPort, backendPort bpf.Port
}

// nowhere is where UDP sockets without a backend are led, by family.
var nowhere = [2]netip.AddrPort{bpf.Nowhere(true), bpf.Nowhere(false)}

func isNowhere(a netip.AddrPort) bool { return a == nowhere[0] || a == nowhere[1] }

// readUDP adds all ways back of UDP sockets to an index, and calls each for those that judge does not find Fresh.
func readUDP(m *Maps, into index, judge func(pair) judgement, each func(target, netip.AddrPort, judgement)) error {
	for i, rev := range m.RevNat {
		var failed error
		err := readMap(rev, bpf.ReadConfig{Batch: m.Batch}, func(k *bpf.UDPRevNatKey, v *bpf.UDPRevNat) {
			p := pair{v.Frontend, k.Backend, v.Port, k.Port}
			into.add(p, k.Cookie)
			j := judge(p)
			if j.verdict == Fresh {
				return
			}
			hidden, err := inOneOf(m.RevNat[:i], k)
			if failed == nil {
				failed = err
			}
			if !hidden {
				t := target{k.Cookie, netip.AddrPortFrom(k.Backend.Addr(), k.Port.Uint16()), bpf.UDP}
				each(t, netip.AddrPortFrom(v.Frontend.Addr(), v.Port.Uint16()), j)
			}
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
	}
	return nil
}

// inOneOf reports whether maps that are asked first have a key.
func inOneOf(maps []*ebpf.Map, k *bpf.UDPRevNatKey) (bool, error) {
	var v bpf.UDPRevNat
	for _, m := range maps {
		if err := m.Lookup(k, &v); err == nil {
			return true, nil
		} else if !errors.Is(err, ebpf.ErrKeyNotExist) {
			return false, err
		}
	}
	return false, nil
}

// readTCP is readUDP for TCP. What another socket has overwritten is forgotten: an array has one place for many cookies.
func readTCP(m *Maps, judge func(pair) judgement, each func(target, netip.AddrPort, judgement)) error {
	return readMap(m.TCP, bpf.ReadConfig{Batch: m.Batch, Lock: true}, func(_ *uint32, p *bpf.SockRevNat) {
		if p.Cookie == 0 || p.BackendPort == (bpf.Port{}) {
			return
		}
		j := judge(pair{p.Frontend, p.Backend, p.FrontendPort, p.BackendPort})
		if j.verdict == Fresh {
			return
		}
		t := target{p.Cookie, netip.AddrPortFrom(p.Backend.Addr(), p.BackendPort.Uint16()), bpf.TCP}
		each(t, netip.AddrPortFrom(p.Frontend.Addr(), p.FrontendPort.Uint16()), j)
	})
}

// readMap calls each for the entries of a map that others write meanwhile; it may miss some.
func readMap[K, V any](m *ebpf.Map, cfg bpf.ReadConfig, each func(*K, *V)) error {
	err := bpf.ReadMap(m, cfg, func(k *K, v *V) bool { each(k, v); return true })
	if errors.Is(err, ebpf.ErrIterationAborted) {
		return nil
	}
	return err
}

// remove deletes keys from a map, and counts those that were there.
func remove[K any](m *ebpf.Map, batch bool, keys []K) (int, error) {
	removed := 0
	for len(keys) > 0 {
		if !batch {
			switch err := m.Delete(&keys[0]); {
			case err == nil:
				removed++
			case !errors.Is(err, ebpf.ErrKeyNotExist):
				return removed, err
			}
			keys = keys[1:]
			continue
		}
		n, err := m.BatchDelete(keys, nil)
		n = min(max(n, 0), len(keys))
		removed += n
		switch {
		case err == nil:
			return removed, nil
		case errors.Is(err, ebpf.ErrKeyNotExist): // it ends at the first key that is gone by itself
			keys = keys[min(n+1, len(keys)):]
		default:
			return removed, err
		}
	}
	return removed, nil
}
