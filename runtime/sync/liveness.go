package sync

import (
	"context"
	"sync"
	"time"
)

// Liveness tells /livez, the watchdog and `firsthop status` whether the Loop makes progress. Its lock is held for a few
// assignments only, never during work: while a write hangs, they report that and don't hang too.
type Liveness struct {
	mu      sync.Mutex
	queued  time.Time // since when there is something that isn't written; zero: there is nothing
	next    time.Time // likewise, of what came after the write at hand had begun
	taken   bool      // a write is at hand
	applied time.Time // when everything was last written; zero: never
	work    map[int]time.Time
	begun   int
}

// queue notes that there is something to write.
func (l *Liveness) queue(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.queued.IsZero() && !l.taken:
		l.queued = now
	case l.next.IsZero():
		l.next = now
	}
}

// take notes that all that is queued is being written, and returns since when it was.
func (l *Liveness) take() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queued = l.since() // what came during a write that failed
	l.next, l.taken = time.Time{}, true
	return l.queued
}

// wrote notes that what was taken is written, but for what is still pending.
func (l *Liveness) wrote(now time.Time, pending bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.applied, l.queued, l.next, l.taken = now, l.next, time.Time{}, false
	if pending && l.queued.IsZero() {
		l.queued = now
	}
}

// Waiting is since when something is to be written; zero: nothing is.
func (l *Liveness) Waiting() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.since()
}

// Late is since when something waits that should have been written; zero: nothing does. Before the first write nothing
// is late: it may have to wait for API servers.
func (l *Liveness) Late() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.applied.IsZero() {
		return time.Time{}
	}
	return l.since()
}

// since is what Waiting says; a write of nothing may be at hand when the first change comes.
func (l *Liveness) since() time.Time {
	if l.queued.IsZero() {
		return l.next
	}
	return l.queued
}

// Applied is when everything was last written; zero: never.
func (l *Liveness) Applied() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.applied
}

// begin notes that a piece of work begins, which done ends.
func (l *Liveness) begin() (done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.work == nil {
		l.work = map[int]time.Time{}
	}
	l.begun++
	n := l.begun
	l.work[n] = time.Now()
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.work, n)
	}
}

// busy is since when the oldest piece of work is running; zero: none is.
func (l *Liveness) busy() (since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.work {
		if since.IsZero() || at.Before(since) {
			since = at
		}
	}
	return since
}

// stuckAfter is how long a change may wait, or a piece of work take, before the runtime counts as stuck. It is longer
// than any of the waits that end by themselves (lockWait), and than /livez's patience.
const stuckAfter = 2 * time.Minute

// stuck reports whether only a restart helps: a change is overdue, whether its writes hang or fail, or work does not
// end. The latter is the only sign before the first write, and of work that nobody waits for.
func (l *Liveness) stuck(after time.Duration) bool {
	over := func(since time.Time) bool { return !since.IsZero() && time.Since(since) >= after }
	return over(l.Late()) || over(l.busy())
}

// Watchdog calls alive at a third of each interval, until ctx ends and as long as the Loop isn't stuck: systemd then
// restarts the process, which takes the table over as it is and costs no traffic. Interval 0: never.
func (l *Liveness) Watchdog(ctx context.Context, interval time.Duration, alive func()) {
	l.watchdog(ctx, interval, stuckAfter, alive)
}

func (l *Liveness) watchdog(ctx context.Context, interval, stuckAfter time.Duration, alive func()) {
	if interval <= 0 {
		return
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if !l.stuck(stuckAfter) {
				alive()
			}
		}
	}
}
