package sockets

import (
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
)

const (
	// goneTime is how long a backend must have been gone before sockets are ended for it, or led nowhere: a slice that is
	// deleted and made again ends nothing.
	goneTime = time.Second
)

// candidate is a socket that the way back names with a backend that it should not be connected to.
type candidate struct {
	target
	frontend   netip.AddrPort
	service    types.NamespacedName
	verdict    Verdict
	generation uint64
	since      time.Time // it was found so

	due     time.Time // when it is to be looked at
	misses  int       // looks that did not find it connected there
	tries   int       // to move or end it that failed
	unmoved bool      // it was tried to be moved, in vain
	settled time.Time // it is not connected there, since then at the latest; zero: it may be
	hung    bool
	left    bool // it is connected there, and nothing could be done
}

// update brings the candidates up to date: by all ways back, if they were read long ago, else, if something was written
// since the last look, by those that the index knows, and else only by what was written.
func (r *Reconciler) update(m *Maps) error {
	r.mu.Lock()
	written := r.all
	r.all = false
	r.mu.Unlock()
	r.generation++
	all := r.now().Sub(r.read) >= interval || written && m.Log == nil || !slices.Equal(m.RevNat, r.followed)
	if all || written {
		err := r.compareAll(m, all)
		if err != nil { // it is to be looked at again
			r.read = time.Time{}
		}
		return err
	}
	for c := range r.active {
		if c.hung {
			continue
		}
		if c.verdict, c.service = r.directory.Judge(c.frontend, c.proto, c.backend); c.verdict == Fresh {
			r.drop(c)
		}
	}
	return nil
}

// compareAll brings the candidates up to date by all ways back, or, where nothing of it is missing, by the index.
func (r *Reconciler) compareAll(m *Maps, all bool) error {
	if all {
		r.index.empty() // what is written from now on is in the log
	}
	if m.Log != nil {
		complete, err := r.index.follow(m.Log)
		if err != nil {
			return err
		}
		if !complete && !all {
			all = true
			r.index.empty()
		}
	}
	if !all {
		return r.compare(m, func(judge func(pair) judgement, note func(target, netip.AddrPort, judgement)) error {
			return r.index.stale(m, judge, r.isLate, note)
		})
	}
	r.read, r.followed = r.now(), m.RevNat
	return r.compare(m, func(judge func(pair) judgement, note func(target, netip.AddrPort, judgement)) error {
		return readUDP(m, r.index, judge, note)
	})
}

// judgement is what the Directory says.
type judgement struct {
	verdict Verdict
	service types.NamespacedName
}

// compare brings the candidates up to date by the ways back of UDP sockets that udp calls its last argument for, and
// those of TCP, where that is asked for.
func (r *Reconciler) compare(m *Maps, udp func(func(pair) judgement, func(target, netip.AddrPort, judgement)) error) error {
	now := r.now()
	judged := map[pair]judgement{} // many sockets have one Service and backend
	judge := func(proto bpf.Proto) func(pair) judgement {
		clear(judged)
		return func(p pair) judgement {
			j, known := judged[p]
			if !known {
				j.verdict, j.service = r.directory.Judge(netip.AddrPortFrom(p.frontend.Addr(), p.frontendPort.Uint16()), proto, netip.AddrPortFrom(p.backend.Addr(), p.backendPort.Uint16()))
				judged[p] = j
			}
			return j
		}
	}
	note := func(t target, frontend netip.AddrPort, j judgement) { r.note(t, frontend, j, now) }
	err := udp(judge(bpf.UDP), note)
	if err == nil && r.cfg.TCP {
		err = readTCP(m, judge(bpf.TCP), note)
	}
	if err != nil {
		return err
	}
	for _, c := range r.candidates {
		if c.generation != r.generation && !c.hung {
			r.drop(c)
		}
	}
	return nil
}

// note takes a way back that is stale.
func (r *Reconciler) note(t target, frontend netip.AddrPort, j judgement, now time.Time) {
	c := r.candidates[t]
	if c != nil && c.frontend != frontend {
		r.drop(c)
		c = nil
	}
	if c == nil {
		c = &candidate{target: t, frontend: frontend, since: now}
		r.candidates[t], r.active[c] = c, struct{}{}
	}
	c.verdict, c.service, c.generation = j.verdict, j.service, r.generation
}

// isLate reports whether a way back is only kept for late answers: nobody but forget removes it.
func (r *Reconciler) isLate(t target, frontend netip.AddrPort) bool {
	c := r.candidates[t]
	return c != nil && c.frontend == frontend && !c.settled.IsZero()
}

// drop forgets a candidate.
func (r *Reconciler) drop(c *candidate) {
	delete(r.candidates, c.target)
	delete(r.active, c)
}

// settle notes that a candidate's socket is not connected as the way back says, and needs nothing any more.
func (r *Reconciler) settle(c *candidate, at time.Time) {
	c.settled = at
	delete(r.active, c)
	if c.proto == bpf.UDP {
		r.late = append(r.late, c)
	}
}

// wants is what is to be done with a candidate, and from when on. One that waits nowhere is moved or left.
func (r *Reconciler) wants(c *candidate) (move bool, from time.Time) {
	move = c.proto == bpf.UDP && c.verdict != Orphan && r.cannotMove == nil && !c.unmoved
	if c.verdict == Waiting || c.verdict == Stale && move {
		return move, c.since
	}
	return move, c.since.Add(goneTime)
}

// waits reports whether nothing is to be done with an active candidate for now, whatever the time.
func (r *Reconciler) waits(c *candidate) bool {
	return c.hung || c.verdict == Waiting && r.cannotMove != nil
}

// dueNow are the candidates that something may be done with now.
func (r *Reconciler) dueNow() (due []*candidate) {
	at := r.now()
	for c := range r.active {
		if r.waits(c) {
			continue
		}
		if _, from := r.wants(c); !at.Before(from) && !at.Before(c.due) {
			due = append(due, c)
		}
	}
	if len(due) == 0 {
		return nil
	}
	out := map[types.NamespacedName]bool{}
	if r.cfg.Out != nil {
		out = r.cfg.Out()
	}
	return slices.DeleteFunc(due, func(c *candidate) bool { return out[c.service] })
}
