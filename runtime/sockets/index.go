package sockets

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
)

// index has the sockets with a way back by what that leads from and to, so that a change of a Service need not read the
// ways back of all. It may have more than there are: each is looked up before it is used.
type index map[pair][]uint64

func (x index) add(p pair, cookie uint64) { x[p] = append(x[p], cookie) }

// empty forgets all, and keeps the room for those that are likely to come again.
func (x index) empty() {
	for p, cookies := range x {
		if len(cookies) == 0 {
			delete(x, p)
			continue
		}
		x[p] = cookies[:0]
	}
}

// follow adds what programs have written since the last call; complete: none of it is missing.
func (x index) follow(log *ebpf.Map) (complete bool, err error) {
	var way bpf.UDPWayBack
	for range log.MaxEntries() {
		if err := log.LookupAndDelete(nil, &way); errors.Is(err, ebpf.ErrKeyNotExist) {
			return true, nil
		} else if err != nil {
			return false, err
		}
		x.add(pair{way.Value.Frontend, way.Key.Backend, way.Value.Port, way.Key.Port}, way.Key.Cookie)
	}
	return false, nil // it may have been full
}

// stale calls each for the ways back that judge does not find Fresh. It looks up those that are not known to be there.
func (x index) stale(m *Maps, judge func(pair) judgement, known func(target, netip.AddrPort) bool, each func(target, netip.AddrPort, judgement)) error {
	for p, cookies := range x {
		j := judge(p)
		if j.verdict == Fresh {
			continue
		}
		backend := netip.AddrPortFrom(p.backend.Addr(), p.backendPort.Uint16())
		frontend := netip.AddrPortFrom(p.frontend.Addr(), p.frontendPort.Uint16())
		slices.Sort(cookies)
		cookies = slices.Compact(cookies)
		var failed error
		x[p] = slices.DeleteFunc(cookies, func(cookie uint64) bool {
			t := target{cookie, backend, bpf.UDP}
			leads := known(t, frontend)
			if !leads {
				var err error
				leads, err = leadsTo(m.RevNat, &bpf.UDPRevNatKey{Cookie: cookie, Backend: p.backend, Port: p.backendPort}, p.frontend, p.frontendPort)
				if err != nil {
					failed = err
					return false
				}
			}
			if leads {
				each(t, frontend, j)
			}
			return !leads
		})
		if failed != nil {
			return failed
		}
	}
	return nil
}

// leadsTo reports whether the first of the maps that has a way back has it for a frontend.
func leadsTo(maps []*ebpf.Map, k *bpf.UDPRevNatKey, frontend bpf.Address, port bpf.Port) (bool, error) {
	var v bpf.UDPRevNat
	for _, m := range maps {
		if err := m.Lookup(k, &v); err == nil {
			return v.Frontend == frontend && v.Port == port, nil
		} else if !errors.Is(err, ebpf.ErrKeyNotExist) {
			return false, err
		}
	}
	return false, nil
}
