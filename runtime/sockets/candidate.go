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

// update brings the candidates up to date: by all ways back, if something was written since they were read or that was
// long ago, else only by what was written.
func (r *Reconciler) update(m *Maps) error {
	r.mu.Lock()
	all := r.all || r.now().Sub(r.read) >= interval
	r.all = false
	r.mu.Unlock()
	r.generation++
	if all {
		r.read = r.now()
		err := r.readAll(m)
		if err != nil {
			r.read = time.Time{}
		}
		return err
	}
	for t, c := range r.candidates {
		if c.hung {
			continue
		}
		if c.verdict, c.service = r.directory.Judge(c.frontend, t.proto, t.backend); c.verdict == Fresh {
			delete(r.candidates, t)
		}
	}
	return nil
}

// readAll brings the candidates up to date by all ways back.
func (r *Reconciler) readAll(m *Maps) error {
	now := r.now()
	verdicts := map[pair]Verdict{} // many sockets have one Service and backend
	judge := func(proto bpf.Proto) func(pair) Verdict {
		clear(verdicts)
		return func(p pair) Verdict {
			v, known := verdicts[p]
			if !known {
				v, _ = r.directory.Judge(netip.AddrPortFrom(p.frontend.Addr(), p.frontendPort.Uint16()), proto, netip.AddrPortFrom(p.backend.Addr(), p.backendPort.Uint16()))
				verdicts[p] = v
			}
			return v
		}
	}
	note := func(t target, frontend netip.AddrPort) { r.note(t, frontend, now) }
	var err error
	r.cookies, err = readUDP(m, judge(bpf.UDP), make([]uint64, 0, len(r.cookies)+256), note) // a search that hangs has the former
	if err == nil && r.cfg.TCP {
		err = readTCP(m, judge(bpf.TCP), note)
	}
	if err != nil {
		return err
	}
	for t, c := range r.candidates {
		if c.generation != r.generation && !c.hung {
			delete(r.candidates, t)
		}
	}
	return nil
}

// note takes a way back that is stale.
func (r *Reconciler) note(t target, frontend netip.AddrPort, now time.Time) {
	verdict, service := r.directory.Judge(frontend, t.proto, t.backend)
	if verdict == Fresh { // since
		return
	}
	c := r.candidates[t]
	if c == nil || c.frontend != frontend {
		c = &candidate{target: t, since: now}
		r.candidates[t] = c
	}
	c.frontend, c.verdict, c.service, c.generation = frontend, verdict, service, r.generation
}

// wants is what is to be done with a candidate, and from when on. One that waits nowhere is moved or left.
func (r *Reconciler) wants(c *candidate) (move bool, from time.Time) {
	move = c.proto == bpf.UDP && c.verdict != Orphan && r.cannotMove == nil && !c.unmoved
	if c.verdict == Waiting || c.verdict == Stale && move {
		return move, c.since
	}
	return move, c.since.Add(goneTime)
}

// waits reports whether nothing is to be done with a candidate for now, whatever the time.
func (r *Reconciler) waits(c *candidate) bool {
	return c.hung || !c.settled.IsZero() || c.verdict == Waiting && r.cannotMove != nil
}

// dueNow are the candidates that something may be done with now.
func (r *Reconciler) dueNow() (due []*candidate) {
	at := r.now()
	for _, c := range r.candidates {
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
