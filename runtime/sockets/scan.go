package sockets

import (
	"errors"
	"net/netip"

	"github.com/cilium/ebpf"

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
	err := readMap(m, bpf.ReadConfig{Batch: batch}, func(k *bpf.UDPRevNatKey, v *bpf.UDPRevNat) {
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
	err := readMap(m, bpf.ReadConfig{Batch: batch, Lock: true}, func(_ *uint32, p *bpf.SockRevNat) {
		if p.Cookie == 0 {
			return
		}
		if at := netip.AddrPortFrom(p.Backend.Addr(), p.BackendPort.Uint16()); w.has(at, 0) {
			found[target{p.Cookie, at}] = true
		}
	})
	return found, err
}

// readMap calls each for the entries of a map that others write meanwhile; it may miss some.
func readMap[K, V any](m *ebpf.Map, cfg bpf.ReadConfig, each func(*K, *V)) error {
	err := bpf.ReadMap(m, cfg, func(k *K, v *V) bool { each(k, v); return true })
	if errors.Is(err, ebpf.ErrIterationAborted) {
		return nil
	}
	return err
}
