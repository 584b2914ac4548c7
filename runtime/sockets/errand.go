package sockets

import (
	"fmt"
	"time"
)

// patience is how long a look waits for something that may take long: other sockets wait with it.
const patience = 300 * time.Millisecond

// errand is something that may take long, or hang, because applications can make it so: it is done in a goroutine of its
// own, one at a time. Its methods are for one goroutine.
type errand[T any] struct {
	result chan T // of the one under way; nil: none is
	began  time.Time
}

// run begins do, unless one is under way, and waits for it for a time. What takes longer is taken by a later call of
// take. began is false where nothing was begun.
func (e *errand[T]) run(wait time.Duration, do func() T) (got T, done, began bool) {
	if e.underWay() {
		return got, false, false
	}
	result := make(chan T, 1)
	e.result, e.began = result, time.Now()
	go func() { result <- do() }()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case got = <-result:
		e.result = nil
		return got, true, true
	case <-timer.C:
		return got, false, true
	}
}

// take takes what is over by now.
func (e *errand[T]) take() (got T, done bool) {
	select {
	case got = <-e.result: // nil: never
		e.result = nil
		return got, true
	default:
		return got, false
	}
}

func (e *errand[T]) underWay() bool { return e.result != nil }

// took is how long it took, or has taken by now.
func (e *errand[T]) took() time.Duration { return time.Since(e.began) }

// hangs is an error of type errOutOfTime if what is under way has taken longer than a time.
func (e *errand[T]) hangs(what string, limit time.Duration) error {
	if !e.underWay() || e.took() < limit {
		return nil
	}
	return errOutOfTime{fmt.Sprintf("%s, for %v,", what, e.took().Round(time.Second))}
}

// errOutOfTime says that something is still at work.
type errOutOfTime struct{ what string }

func (e errOutOfTime) Error() string {
	return e.what + " hangs: an application holds the lock of a socket, and before Linux 6.9 all diagnostics of sockets wait for it"
}
