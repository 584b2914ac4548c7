package sockets

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firsthop/firsthop/kernel/sockdiag"
)

const (
	// workers is how many sockets are worked on at a time.
	workers = 4
	// jobTime is how long one may take before it counts as hung: it is a matter of microseconds, unless its application
	// holds its lock.
	jobTime = 200 * time.Millisecond
	// jobMean is how long those of one tenant may take on average, beside one that takes jobTime: the others are skipped.
	// An application can hold each lock for a little less than jobTime.
	jobMean = time.Millisecond
	// maxHung bounds how many threads may wait for locks of sockets: on the node, for the sockets of one network namespace,
	// and for those of all foreign ones: one tenant's must not use up those for all others.
	maxHung, maxHungEach, maxHungForeign = 64, 2, 16
)

// tenant is whose sockets they are, as far as that limits what they may cost others: a network namespace by its inode, or
// foreign.
type tenant uint64

// foreign are all network namespaces together that belong to another user namespace than this process's: who may make one
// user namespace, may make thousands of them with a network namespace each.
const foreign tenant = 0

// crew works on sockets, in threads that may never come back. Its methods are for one goroutine.
type crew struct {
	limit time.Duration // of a job
	epoch time.Time     // times are since then, by a clock that nobody sets
	back  func()        // a job that was given up is over

	mu      sync.Mutex
	hung    map[*job]bool
	tenants map[tenant]int    // how many of them are whose
	spent   map[tenant]*spent // by the jobs of this work
	late    []*job            // that came back
}

type spent struct {
	jobs int
	time time.Duration
}

// job is something to be done with one socket.
type job struct {
	netns  uint64
	tenant tenant
	do     func() error

	socket  sockdiag.Socket // as it is after it was moved
	err     error
	done    atomic.Bool
	begun   atomic.Int64 // since the crew's epoch; 0: not yet
	skipped bool         // not done: too much hangs, or its tenant's took too long
	at      *candidate   // what it is for
	ends    bool         // it ends the socket
}

func newCrew() *crew {
	return &crew{limit: jobTime, epoch: time.Now().Add(-1), back: func() {}, hung: map[*job]bool{}, tenants: map[tenant]int{}}
}

// may reports whether another socket of a tenant may be worked on.
func (c *crew) may(t tenant) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	most := maxHungEach
	if t == foreign {
		most = maxHungForeign
	}
	s := c.spent[t]
	return len(c.hung) < maxHung && c.tenants[t] < most && (s == nil || s.time <= c.limit+time.Duration(s.jobs)*jobMean)
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
	c.mu.Lock()
	c.spent = map[tenant]*spent{}
	c.mu.Unlock()
	var next atomic.Int64
	finished := make(chan *job, len(jobs))
	worker := func() {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(jobs) {
				return
			}
			j := jobs[i]
			if j.skipped = ctx.Err() != nil || !c.may(j.tenant); !j.skipped {
				j.begun.Store(int64(time.Since(c.epoch)))
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
	j.done.Store(true)
	if late = c.hung[j]; late {
		delete(c.hung, j)
		if c.tenants[j.tenant]--; c.tenants[j.tenant] == 0 {
			delete(c.tenants, j.tenant)
		}
		c.late = append(c.late, j)
	} else if !j.skipped {
		c.spend(j)
	}
	c.mu.Unlock()
	if late {
		c.back()
	}
	return late
}

// spend counts what a job has taken by now.
func (c *crew) spend(j *job) {
	s := c.spent[j.tenant]
	if s == nil {
		s = &spent{}
		c.spent[j.tenant] = s
	}
	s.jobs++
	s.time += time.Since(c.epoch) - time.Duration(j.begun.Load())
}

// giveUp counts a job as hung if it takes too long.
func (c *crew) giveUp(j *job) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	begun := j.begun.Load()
	if begun == 0 || j.done.Load() || time.Since(c.epoch)-time.Duration(begun) < c.limit {
		return false
	}
	c.hung[j] = true
	c.tenants[j.tenant]++
	c.spend(j)
	return true
}
