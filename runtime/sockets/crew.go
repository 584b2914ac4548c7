package sockets

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// workers is how many sockets are worked on at a time.
	workers = 4
	// jobTime is how long one may take: it is a matter of microseconds, unless its application holds its lock.
	jobTime = time.Second
	// maxHung bounds how many threads may wait for locks of sockets, on the node and for the sockets of one network
	// namespace: one tenant's must not use up those for all others.
	maxHung, maxHungEach = 64, 2
)

// crew works on sockets, in threads that may never come back. Its methods are for one goroutine.
type crew struct {
	limit time.Duration // of a job

	mu     sync.Mutex
	hung   map[*job]bool
	netnss map[uint64]int // how many of them are of a network namespace
	late   []*job         // that came back
}

// job is something to be done with one socket.
type job struct {
	netns uint64
	do    func() error

	socket  socket // as it is after it was moved
	err     error
	done    atomic.Bool
	begun   atomic.Int64 // Unix time in ns; 0: not yet
	skipped bool         // not done: too much hangs
	at      *candidate   // what it is for
	ends    bool         // it ends the socket
}

func newCrew() *crew { return &crew{limit: jobTime, hung: map[*job]bool{}, netnss: map[uint64]int{}} }

// mayHang reports whether another socket of a network namespace may be worked on.
func (c *crew) mayHang(netns uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.hung) < maxHung && c.netnss[netns] < maxHungEach
}

// hanging is how many jobs hang.
func (c *crew) hanging() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.hung)
}

// returned takes the jobs that hung and came back.
func (c *crew) returned() []*job {
	c.mu.Lock()
	defer c.mu.Unlock()
	late := c.late
	c.late = nil
	return late
}

// work does jobs, in any order, and returns those that hang: their results come by returned, if ever. After the context's
// end the rest is skipped.
func (c *crew) work(ctx context.Context, jobs []*job) (hung []*job) {
	var next atomic.Int64
	finished := make(chan *job, len(jobs))
	worker := func() {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(jobs) {
				return
			}
			j := jobs[i]
			if j.skipped = ctx.Err() != nil || !c.mayHang(j.netns); !j.skipped {
				j.begun.Store(time.Now().UnixNano())
				j.err = j.do()
			}
			late := c.finish(j)
			finished <- j
			if late {
				return // another worker has its place
			}
		}
	}
	for range min(workers, len(jobs)) {
		go worker()
	}
	tick := time.NewTicker(c.limit / 4)
	defer tick.Stop()
	given := map[*job]bool{} // that hang
	for left := len(jobs); left > 0; {
		select {
		case j := <-finished:
			if !given[j] {
				left--
			}
		case <-tick.C:
			for _, j := range jobs {
				if !given[j] && c.giveUp(j) {
					given[j] = true
					hung = append(hung, j)
					left--
					go worker()
				}
			}
		}
	}
	return hung
}

// finish notes that a job is over, and reports whether it had been given up.
func (c *crew) finish(j *job) (late bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j.done.Store(true)
	if !c.hung[j] {
		return false
	}
	delete(c.hung, j)
	if c.netnss[j.netns]--; c.netnss[j.netns] == 0 {
		delete(c.netnss, j.netns)
	}
	c.late = append(c.late, j)
	return true
}

// giveUp counts a job as hung if it takes too long.
func (c *crew) giveUp(j *job) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	begun := j.begun.Load()
	if begun == 0 || j.done.Load() || time.Since(time.Unix(0, begun)) < c.limit {
		return false
	}
	c.hung[j] = true
	c.netnss[j.netns]++
	return true
}

// outOfTime says that something is still at work.
type errOutOfTime struct{ what string }

func (e errOutOfTime) Error() string {
	return e.what + " hangs: an application holds the lock of a socket, and before Linux 6.9 all diagnostics of sockets wait for it"
}

// guard runs do, which may hang, and returns when it has, or after a time with an error of type errOutOfTime. Until do
// has returned, guard runs nothing else and gives that error at once.
type guard struct{ busy atomic.Bool }

func (g *guard) run(what string, limit time.Duration, do func() error) error {
	if !g.busy.CompareAndSwap(false, true) {
		return errOutOfTime{what}
	}
	done := make(chan error, 1)
	go func() {
		defer g.busy.Store(false)
		done <- do()
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return errOutOfTime{what}
	}
}
