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
	if settled := r.settledCount(); len(m.RevNat) > 0 && settled > int(m.RevNat[0].MaxEntries())/forgetAt {
		old = r.now() // room for new ones is worth more
	}
	var keys []bpf.UDPRevNatKey
	for t, c := range r.candidates {
		if t.proto != bpf.UDP || c.settled.IsZero() || c.settled.After(old) || c.hung {
			continue
		}
		if v, _ := r.directory.Judge(c.frontend, t.proto, t.backend); v == Fresh {
			continue
		}
		keys = append(keys, bpf.UDPRevNatKey{Cookie: t.cookie, Backend: bpf.AddressOf(t.backend.Addr()), Port: bpf.PortOf(t.backend.Port())})
		delete(r.candidates, t)
	}
	for _, rev := range m.RevNat {
		if _, err := remove(rev, m.Batch, keys); err != nil {
			return err
		}
	}
	return nil
}

// settledCount is how many ways back are of no use but for late answers.
func (r *Reconciler) settledCount() (n int) {
	for _, c := range r.candidates {
		if !c.settled.IsZero() {
			n++
		}
	}
	return n
}
