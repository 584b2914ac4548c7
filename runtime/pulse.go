package runtime

import (
	"context"
	"sync"
	"time"
)

// pulse is what /livez, the watchdog and `firsthop status` ask of the engine. Its lock is held for a few assignments
// only, never during work: who asks while a write hangs shall be told so, and not hang too.
type pulse struct {
	mu      sync.Mutex
	queued  time.Time // since when there is something that isn't written; zero: there is nothing
	next    time.Time // likewise, of what came after the write at hand had begun
	taken   bool      // a write is at hand
	applied time.Time // when all that there was was written; zero: never
	work    map[int]time.Time
	begun   int
}

// queue notes that there is something to write.
func (p *pulse) queue(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.queued.IsZero() && !p.taken:
		p.queued = now
	case p.next.IsZero():
		p.next = now
	}
}

// take notes that all that is queued is being written, and returns since when it was.
func (p *pulse) take() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queued = p.since() // what came during a write that failed
	p.next, p.taken = time.Time{}, true
	return p.queued
}

// wrote notes that what was taken is written, but for what is still pending.
func (p *pulse) wrote(now time.Time, pending bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.applied, p.queued, p.next, p.taken = now, p.next, time.Time{}, false
	if pending && p.queued.IsZero() {
		p.queued = now
	}
}

// waiting is since when something is to be written; zero: nothing is.
func (p *pulse) waiting() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.since()
}

// late is since when something waits that should have been written; zero: nothing does. Before the first write nothing
// is late: it may have to wait for API servers.
func (p *pulse) late() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.applied.IsZero() {
		return time.Time{}
	}
	return p.since()
}

// since is what waiting says; a write of nothing may be at hand when the first change comes.
func (p *pulse) since() time.Time {
	if p.queued.IsZero() {
		return p.next
	}
	return p.queued
}

// appliedAt is when all that there was was written; zero: never.
func (p *pulse) appliedAt() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.applied
}

// begin notes that a piece of work begins, which done ends.
func (p *pulse) begin() (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.work == nil {
		p.work = map[int]time.Time{}
	}
	p.begun++
	n := p.begun
	p.work[n] = time.Now()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.work, n)
	}
}

// busy is since when the piece of work goes on that began first; zero: none does.
func (p *pulse) busy() (since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range p.work {
		if since.IsZero() || at.Before(since) {
			since = at
		}
	}
	return since
}

// stuckAfter is how long a change may wait, or a piece of work take, before the runtime is taken for stuck. It is longer
// than any of the waits that end by themselves (lockWait), and than /livez's patience.
const stuckAfter = 2 * time.Minute

// stuck reports whether a restart is all that is left: a change that is overdue, whether its writes hang or fail, or
// work of which no end is seen. The latter is the only sign before the first write, and of work that nobody waits for.
func (p *pulse) stuck(after time.Duration) bool {
	over := func(since time.Time) bool { return !since.IsZero() && time.Since(since) >= after }
	return over(p.late()) || over(p.busy())
}

// watchdog tells notify every so often that the runtime lives, for as long as it isn't stuck: systemd starts it anew
// then, which takes the table over as it is and costs no traffic.
func (e *engine) watchdog(ctx context.Context, every, stuckAfter time.Duration, notify func(string)) {
	if every <= 0 {
		return
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if !e.pulse.stuck(stuckAfter) {
				notify("WATCHDOG=1")
			}
		}
	}
}
