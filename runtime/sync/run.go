package sync

import (
	"context"
	"sync"
	"time"
)

const (
	// lockWait bounds how long a write waits for an init stage that is at work.
	lockWait = 30 * time.Second
	// verifyInterval is how often the whole table is compared with what it should be.
	verifyInterval = 30 * time.Second
	// The back-off after a write that failed.
	firstRetry, longestRetry = 100 * time.Millisecond, 5 * time.Second
	// growInterval is the least time between two attempts at more capacity.
	growInterval = time.Second
	growRetry    = time.Minute // after one that failed
)

func (l *Loop) notify() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Notify makes the Loop flush again. It doesn't block.
func (l *Loop) Notify() { l.notify() }

// Run writes until ctx ends, and verifies the table beside that: to read a large
// one takes longer than a change may wait.
func (l *Loop) Run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() { l.write(ctx) })
	group.Go(func() { l.verify(ctx) })
	group.Wait()
}

func (l *Loop) write(ctx context.Context) {
	retry := firstRetry
	var again <-chan time.Time
	var growAgain time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-again:
		}
		again = nil
		ready, left := l.ready()
		if !ready {
			if left > 0 {
				again = time.After(left)
			}
			if err := l.work(ctx, l.redirect); err != nil && ctx.Err() == nil {
				l.cfg.Log.Error("the API service could not be led to live API servers", "err", err)
				again = time.After(time.Second)
			}
			continue
		}
		if err := l.work(ctx, l.flush); err != nil && ctx.Err() == nil {
			l.cfg.Log.Error("the table could not be written; it stays as it was", "err", err, "retry_in", retry)
			again = time.After(retry)
			retry = min(retry*2, longestRetry)
			continue
		}
		retry = firstRetry
		short := l.cfg.Writer.Short()
		if short == 0 || l.cfg.Grow == nil {
			continue
		}
		if wait := time.Until(growAgain); wait > 0 { // it grew just now, and that was not enough
			again = time.After(wait)
			continue
		}
		growAgain = time.Now().Add(growInterval)
		if err := l.work(ctx, func(ctx context.Context) error { return l.cfg.Grow(ctx, short) }); err != nil {
			growAgain = time.Now().Add(growRetry)
			again = time.After(growRetry)
			l.cfg.Log.Error("the table is full and could not be given more room; Services are out (see status)", "err", err)
			continue
		}
		l.notify()
	}
}

func (l *Loop) verify(ctx context.Context) {
	tick := time.NewTicker(verifyInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := l.work(ctx, func(ctx context.Context) error {
			_, err := l.cfg.Writer.Verify(ctx)
			return err
		})
		if err != nil && ctx.Err() == nil {
			l.cfg.Log.Error("the table could not be compared with what it should be", "err", err)
		}
	}
}

// work does a piece of work so that the watchdog sees when it hangs.
func (l *Loop) work(ctx context.Context, do func(context.Context) error) error {
	defer l.liveness.begin()()
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	return do(ctx)
}

// flush writes what is queued.
func (l *Loop) flush(ctx context.Context) error {
	l.mu.Lock()
	ranges, others, rangeDue := l.takeRange()
	if rangeDue {
		l.publish(ServiceRange(ranges))
	}
	l.publish(FlushBegun{l.liveness.take()})
	l.mu.Unlock()
	w := l.cfg.Writer
	if rangeDue {
		w.SetServiceRange(ranges, others)
	}
	err := w.Flush(ctx)
	left, deferred := w.Pending(), w.Deferred()

	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || !deferred {
		l.publish(FlushDone{err})
	}
	if err == nil {
		l.liveness.wrote(time.Now(), left)
		l.queueRange()
	}
	return err
}
