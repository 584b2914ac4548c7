package conntrack

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/firsthop/firsthop/bpf"
)

const (
	// share is the part of a processor that passes take at most, as a divisor.
	share = 50
	// minPause is between passes over a map that is nearly full, maxPause over an empty one. What has ended is in nobody's
	// way, but takes room: the fewer there is left, the sooner it is looked for.
	minPause, maxPause = 10 * time.Second, time.Minute
	// nearlyFull is the part of the map from which on a pass comes after minPause.
	nearlyFull = 0.75
	// gatherTime is between a change of endpoints and the pass for it, which is for all changes until then: a client
	// with a fixed port is to reach the new backend within a second.
	gatherTime = 500 * time.Millisecond
)

// Config is what a Collector needs.
type Config struct {
	Log   *slog.Logger
	Table Table
	// Gone reports whether a frontend's backend serves no more, as of what is written to the NAT table
	// (sockets.Directory.Gone). It may be called often. nil: none is ever gone.
	Gone func(frontend netip.AddrPort, p bpf.Proto, backend netip.AddrPort) bool
}

// Collector removes flows that have ended, and flows of UDP whose backend serves no more. TCP has its own ways to
// notice that, and connections to a terminating backend may last.
//
// EndpointsGone and Status may be called by any goroutine.
type Collector struct {
	cfg  Config
	wake chan struct{}
	now  func() uint64 // tests have their own

	mu     sync.Mutex
	status Status
}

// New makes a Collector.
func New(cfg Config) *Collector {
	return &Collector{cfg: cfg, wake: make(chan struct{}, 1), now: Now, status: Status{Capacity: int(cfg.Table.Map.MaxEntries())}}
}

// EndpointsGone says that a Service with frontends for clients outside may have lost a backend of UDP, and that this is written.
func (c *Collector) EndpointsGone() {
	select {
	case c.wake <- struct{}{}:
	default: // one is under way that comes later
	}
}

// Run makes passes until ctx ends.
func (c *Collector) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
			if soon := time.Now().Add(gatherTime); soon.Before(due) {
				due = soon
				timer.Reset(gatherTime)
			}
			continue
		case <-timer.C:
		}
		pause := c.Pass()
		due = time.Now().Add(pause)
		timer.Reset(pause)
	}
}

// Pass looks at all flows, and returns when to do so again.
func (c *Collector) Pass() time.Duration {
	select { // it is for all that is gone by now
	case <-c.wake:
	default:
	}
	begun := time.Now()
	p := pass{Config: &c.cfg, now: c.now(), gone: map[leads]bool{}}
	err := p.run()
	took := time.Since(begun)

	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && c.status.Error == nil {
		c.cfg.Log.Warn("flows that have ended were not removed", "err", err)
	}
	c.status.add(&p, begun, took, err)
	return pauseAfter(took, float64(c.status.Entries)/float64(max(1, c.status.Capacity)))
}

// pauseAfter is how long to wait after a pass that took a time, with a map that is filled so far.
func pauseAfter(took time.Duration, full float64) time.Duration {
	empty := max(0, nearlyFull-full) / nearlyFull
	return max(minPause+time.Duration(empty*float64(maxPause-minPause)), share*took)
}

// leads is where a frontend leads.
type leads struct{ frontend, backend netip.AddrPort }

// maxSuspects is how many entries are remembered while a map is read. With more, those that follow may be removed before they
// are counted, so that Status is too low until the next pass.
const maxSuspects = 1 << 16

// pass is one look at all flows.
type pass struct {
	*Config
	now      uint64
	gone     map[leads]bool // what Gone has said
	suspects []Entry        // to be judged with what belongs to them

	entries   int // those that stay
	flows     map[Kind]int
	collected int // flows, and entries without one, that had ended
	forgotten int // flows whose backend serves no more
}

func (p *pass) run() error {
	p.flows = map[Kind]int{}
	var failed error
	err := p.Table.read(func(e Entry) bool {
		p.count(e, 1)
		if p.leadsNowhere(e) || overdue(e.Key.Proto, e.Flow, p.now) {
			p.suspects = append(p.suspects, e)
		}
		if len(p.suspects) == maxSuspects {
			failed = p.judge()
		}
		return failed == nil
	})
	if err == nil && failed == nil {
		failed = p.judge()
	}
	return errors.Join(err, failed)
}

func (p *pass) count(e Entry, n int) {
	p.entries += n
	if e.isClients() {
		p.flows[Kind{e.Key.Proto, StateOf(e.Flow)}] += n
	}
}

// judge removes the flows of suspects that are to go.
func (p *pass) judge() error {
	for _, e := range p.suspects {
		if err := p.judgeOne(e); err != nil {
			return err
		}
	}
	p.suspects = p.suspects[:0]
	return nil
}

// judgeOne looks at an entry again, and removes its flow if it is to go.
func (p *pass) judgeOne(e Entry) error {
	f, there, err := p.Table.lookup(e.Key)
	if err != nil || !there { // it went with its partner, mostly
		return err
	}
	noted := f != e.Flow
	e.Flow = f
	gone := p.leadsNowhere(e)
	if noted && !gone {
		return nil
	}
	g, err := p.Table.groupOf(e)
	if err != nil || !gone && !g.over(p.now) {
		return err
	}
	removed, err := p.Table.remove(&g)
	for _, e := range removed {
		p.count(e, -1)
	}
	switch {
	case len(removed) == 0: // the kernel has evicted them
	case gone:
		p.forgotten++
	default:
		p.collected++
	}
	return err
}

// leadsNowhere reports whether an entry leads packets of UDP to a backend that serves no more.
func (p *pass) leadsNowhere(e Entry) bool {
	if p.Gone == nil || e.Key.Proto != bpf.UDP || !e.isClients() {
		return false
	}
	to := leads{e.Key.Destination(), e.Flow.AddrPort()}
	gone, known := p.gone[to]
	if !known {
		gone = p.Gone(to.frontend, bpf.UDP, to.backend)
		p.gone[to] = gone
	}
	return gone
}
