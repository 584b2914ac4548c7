package sockets

import (
	"time"

	"github.com/firsthop/firsthop/bpf"
)

const (
	// lateTime is how long the way back from a backend stays after its socket went elsewhere: for answers on their way.
	lateTime = 10 * time.Second
	// forgetAt is the part of a map, as a divisor, that such ways back may have; more are removed at once.
	forgetAt = 8
)

// forget removes ways back of sockets that have been elsewhere for a while.
func (r *Reconciler) forget(m *Maps) error {
	for _, c := range r.restore {
		key := bpf.UDPRevNatKey{Cookie: c.cookie, Backend: bpf.AddressOf(c.backend.Addr()), Port: bpf.PortOf(c.backend.Port())}
		value := bpf.UDPRevNat{Frontend: bpf.AddressOf(c.frontend.Addr()), Port: bpf.PortOf(c.frontend.Port())}
		if err := m.RevNat[0].Put(&key, &value); err != nil {
			return err
		}
	}
	r.restore = nil
	old := r.now().Add(-lateTime)
	if len(m.RevNat) > 0 && len(r.late) > int(m.RevNat[0].MaxEntries())/forgetAt {
		old = r.now() // room for new ones is worth more
	}
	var keys []bpf.UDPRevNatKey
	for len(r.late) > 0 && !r.late[0].settled.After(old) {
		c := r.late[0]
		r.late = r.late[1:]
		if r.candidates[c.target] != c {
			continue
		}
		r.drop(c)
		if v, _ := r.directory.Judge(c.frontend, c.proto, c.backend); v == Fresh { // its socket may go back there
			continue
		}
		key := bpf.UDPRevNatKey{Cookie: c.cookie, Backend: bpf.AddressOf(c.backend.Addr()), Port: bpf.PortOf(c.backend.Port())}
		leads, err := leadsTo(m.RevNat, &key, bpf.AddressOf(c.frontend.Addr()), bpf.PortOf(c.frontend.Port()))
		if err != nil {
			return err
		}
		if leads { // else the socket came there again, by another Service
			keys = append(keys, key)
		}
	}
	for _, rev := range m.RevNat {
		if _, err := remove(rev, m.Batch, keys); err != nil {
			return err
		}
	}
	return nil
}
