package sockets

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/kernel/sockdiag"
)

const (
	// stayTime is when a socket that its Service led where it was is tried again.
	stayTime = time.Minute
	// boundTime is when one that is bound to a loopback address is: each time it has no peer for an instant.
	boundTime = time.Hour
	// maxTries is how often a socket is tried to be moved or ended before it is left; then at each interval.
	maxTries = 8
)

// act moves and ends sockets.
func (r *Reconciler) act(ctx context.Context, due []*candidate) error {
	var attached error
	if r.cfg.Attached != nil {
		attached = r.cfg.Attached()
	}
	var jobs []*job
	for _, c := range due {
		if move, _ := r.wants(c); move && r.owners[c.cookie].holder.pid == 0 && c.verdict != Waiting {
			c.unmoved = true
		}
		move, from := r.wants(c)
		switch {
		case r.now().Before(from):
			c.due = from
		case move && attached != nil: // it would connect to the Service's own address
			c.left, c.due = true, r.now().Add(goneTime)
		case c.verdict == Waiting && r.owners[c.cookie].holder.pid == 0: // it does no harm where it is
			c.left, c.due = true, r.now().Add(interval)
		default:
			jobs = append(jobs, &job{at: c, netns: r.owners[c.cookie].netns.Inode, ends: !move})
		}
	}
	pools, err := r.open(ctx, jobs)
	jobs = slices.DeleteFunc(jobs, func(j *job) bool {
		pool := pools[j.netns]
		if pool == nil { // the namespace is gone, or could not be entered
			r.disown(j.at.cookie)
			j.at.due = r.now().Add(againTime)
			return true
		}
		o := r.owners[j.at.cookie]
		j.tenant = pool.tenant
		j.do = pool.job(j, j.at.target, j.at.frontend, *o, r.listedThere(j.at))
		return false
	})
	for _, j := range r.crew.work(ctx, jobs) {
		j.at.hung = true
	}
	for _, p := range pools {
		p.close()
	}
	for _, j := range jobs {
		if !j.at.hung && ctx.Err() == nil {
			r.finish(j)
		}
	}
	return err
}

// listedThere reports whether the kernel has listed a candidate's socket in this look, and connected as the way back says.
func (r *Reconciler) listedThere(c *candidate) bool {
	o := r.owners[c.cookie]
	return o.seen == r.generation && o.socket.Remote() == c.backend
}

// finish takes the result of a job.
func (r *Reconciler) finish(j *job) {
	c, at := j.at, r.now()
	c.left = false
	var stuck errOutOfTime
	switch {
	case j.skipped, errors.As(j.err, &stuck):
		c.left, c.due = true, at.Add(goneTime)
	case j.err == nil && j.ends:
		r.settle(c, at)
		r.count(c, Counts{EndedUDP: one(c.proto == bpf.UDP), EndedTCP: one(c.proto == bpf.TCP)})
	case j.err == nil:
		r.settle(c, at)
		r.isAt(c.cookie, j.socket)
		r.count(c, Counts{Moved: 1})
		r.moved()
	case errors.Is(j.err, errNotThere), errors.Is(j.err, sockdiag.ErrMoved), errors.Is(j.err, errNoCopy):
		if o := r.owners[c.cookie]; o != nil && errors.Is(j.err, errNoCopy) {
			delete(r.held, o.holder)
			o.holder = holder{}
		} else {
			r.disown(c.cookie)
		}
		c.due = at // it is looked for again
		if c.tries++; c.tries >= maxTries {
			c.tries, c.left, c.due = 0, true, at.Add(interval)
		}
		c.unmoved = errors.Is(j.err, errNoCopy) && c.tries > 1 && c.verdict != Waiting
	case errors.Is(j.err, errBound):
		c.due = at.Add(boundTime)
		r.restore = append(r.restore, c)
	case errors.Is(j.err, errStays):
		r.isAt(c.cookie, j.socket)
		c.due = at.Add(stayTime)
	case j.ends:
		r.failed = j.err
		c.left, c.due = true, at.Add(interval)
	case c.verdict == Waiting:
		r.refused(j.err)
		c.left, c.due = true, at.Add(interval)
	default:
		r.refused(j.err)
		c.unmoved = true
	}
}

// isAt notes the address that a socket has after it was dissolved.
func (r *Reconciler) isAt(cookie uint64, s sockdiag.Socket) {
	if o := r.owners[cookie]; o != nil {
		o.socket = s
	}
}

func one(is bool) uint64 {
	if is {
		return 1
	}
	return 0
}

// moved notes that sockets can be moved.
func (r *Reconciler) moved() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.MoveError = nil
}

// refused notes why a socket could not be moved.
func (r *Reconciler) refused(err error) {
	if errors.Is(err, ErrCannotMove) {
		r.cannotMove = err
	}
	if !errors.Is(err, ErrCannotMove) && !errors.Is(err, privileges.ErrRefused) {
		r.cfg.Log.Debug("a udp socket was not moved", "err", err)
		return
	}
	r.mu.Lock()
	first := r.status.MoveError == nil
	r.status.MoveError = err
	r.mu.Unlock()
	if first {
		r.cfg.Log.Warn("connected UDP sockets of backends that went are ended, not moved", "err", err)
	}
}
