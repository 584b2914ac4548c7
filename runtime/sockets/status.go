package sockets

import (
	"errors"
	"maps"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/kernel/sockdiag"
)

// Counts are what was done with sockets whose backend was gone.
type Counts struct {
	Moved    uint64 // connected UDP sockets that were connected to their Service again
	EndedUDP uint64 // connected UDP sockets that were ended
	EndedTCP uint64
}

func (c Counts) plus(o Counts) Counts {
	return Counts{c.Moved + o.Moved, c.EndedUDP + o.EndedUDP, c.EndedTCP + o.EndedTCP}
}

// Status is what a Reconciler did, and what it could not do.
type Status struct {
	Counts
	Services map[types.NamespacedName]Counts // of Services that exist

	Left  int    // sockets that are on a backend that is gone, and could be neither moved nor ended
	Hung  int    // sockets whose lock an application holds, so that work on them does not end
	Swept uint64 // entries of closed sockets that were removed

	Looks     uint64        // comparisons of all sockets with the table
	Searches  uint64        // of them, those that listed sockets
	Busy      time.Duration // that looks took, all together, by the wall clock
	LastSweep time.Time

	MoveError  error // why sockets are ended, not moved; nil: none had to be
	Error      error // of the last look; nil: it went well
	SweepError error // of the last sweep

	services map[types.NamespacedName]Counts
}

// Status tells how things are.
func (r *Reconciler) Status() Status {
	hung := r.crew.hanging()
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.status.services {
		if !r.directory.Has(name) {
			delete(r.status.services, name)
		}
	}
	st := r.status
	st.Hung = hung
	st.Services, st.services = maps.Clone(r.status.services), nil
	return st
}

// count adds what was done with a candidate's socket.
func (r *Reconciler) count(c *candidate, did Counts) {
	r.unlogged = r.unlogged.plus(did)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Counts = r.status.Counts.plus(did)
	if c.service.Name != "" {
		r.status.services[c.service] = r.status.services[c.service].plus(did)
	}
}

// report takes note of a look, and logs what has been done.
func (r *Reconciler) report(err error, took time.Duration) {
	left := 0
	for c := range r.active {
		if c.left {
			left++
		}
	}
	r.mu.Lock()
	st := &r.status
	st.Looks++
	st.Busy += took
	st.Left = left
	changed := err != nil && (st.Error == nil || st.Error.Error() != err.Error())
	if err != nil || !errors.Is(st.Error, sockdiag.ErrNotSupported) {
		st.Error = err
	}
	r.mu.Unlock()
	if changed {
		r.cfg.Log.Warn("sockets were not all compared with the table", "err", err)
	}
	if n := r.unlogged; n != (Counts{}) && r.now().Sub(r.logged) >= logInterval {
		r.cfg.Log.Info("sockets of backends that are gone", "moved", n.Moved, "ended_udp", n.EndedUDP, "ended_tcp", n.EndedTCP, "left", left, "hung", r.crew.hanging())
		r.unlogged, r.logged = Counts{}, r.now()
	}
}
