package runtime

import (
	"context"
	"time"
)

// The part of the engine that writes: one goroutine, woken by whoever has news.

const (
	// verifyInterval is how often the whole table is compared with what it should be.
	verifyInterval = 30 * time.Second
	// retryLongest bounds the back-off after a write that failed.
	retryLongest = 5 * time.Second
	// growInterval is the least time between two attempts at more room.
	growInterval = time.Second
	growRetry    = time.Minute // after one that failed
)

func (e *engine) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// run flushes until ctx ends.
func (e *engine) run(ctx context.Context) {
	retry := 100 * time.Millisecond
	var again <-chan time.Time
	var growAgain time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
		case <-again:
		}
		again = nil
		ready, left := e.ready()
		if !ready {
			if left > 0 {
				again = time.After(left)
			}
			if err := e.work(ctx, e.redirect); err != nil && ctx.Err() == nil {
				e.log.Error("the API service could not be led to live API servers", "err", err)
				again = time.After(time.Second)
			}
			continue
		}
		if err := e.work(ctx, e.flush); err != nil && ctx.Err() == nil {
			e.log.Error("the table could not be written; it stays as it was", "err", err, "retry_in", retry)
			again = time.After(retry)
			retry = min(retry*2, retryLongest)
			continue
		}
		retry = 100 * time.Millisecond
		short := e.writer.Short()
		if short == 0 || e.grow == nil {
			continue
		}
		if wait := time.Until(growAgain); wait > 0 { // it was given room just now, and that was not enough
			again = time.After(wait)
			continue
		}
		growAgain = time.Now().Add(growInterval)
		if err := e.work(ctx, func(ctx context.Context) error { return e.grow(ctx, short) }); err != nil {
			growAgain = time.Now().Add(growRetry)
			again = time.After(growRetry)
			e.log.Error("the table is full and could not be given more room; Services are out (see status)", "err", err)
			continue
		}
		e.poke()
	}
}

// verify compares the table with what it should be until ctx ends, beside the
// flushes: to read a large one takes longer than a change may wait.
func (e *engine) verify(ctx context.Context) {
	tick := time.NewTicker(verifyInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := e.work(ctx, e.verifyOnce); err != nil && ctx.Err() == nil {
			e.log.Error("the table could not be compared with what it should be", "err", err)
		}
	}
}

func (e *engine) verifyOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	_, err := e.writer.Verify(ctx)
	return err
}

// work does a piece of work so that the watchdog sees when it hangs.
func (e *engine) work(ctx context.Context, do func(context.Context) error) error {
	defer e.pulse.begin()()
	return do(ctx)
}

// lockWait bounds how long a flush waits for an init stage that is at work.
const lockWait = 30 * time.Second

func (e *engine) flush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	e.mu.Lock()
	began := e.pulse.take()
	leaving, changes := e.leaving, e.untold.take()
	e.leaving = nil
	ranges, others, tellRange := e.takeRange()
	e.mu.Unlock()
	e.flushing = append(e.flushing, e.watched.flush(began))
	for _, c := range changes {
		e.writer.Set(c.Before, c.After)
	}
	if tellRange {
		e.writer.SetServiceRange(ranges, others)
	}
	err := e.writer.Flush(ctx)
	pending, held := e.writer.Pending(), e.writer.Held()
	if err != nil || !held {
		for _, done := range e.flushing {
			done(err)
		}
		e.flushing = nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		e.leaving = append(leaving, e.leaving...)
		return err
	}
	e.pulse.wrote(time.Now(), pending)
	e.written()
	e.queueRange()
	if held { // what leads to them may be there still
		e.leaving = append(leaving, e.leaving...)
		return nil
	}
	if gone := e.unused(leaving); len(gone) > 0 {
		e.gone(gone)
	}
	return nil
}
