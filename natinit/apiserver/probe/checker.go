package probe

import (
	"context"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// Checker probes one endpoint again and again: TLS and GET /readyz over one
// kept connection, so that a probe costs one small packet each way and no
// handshake. Its methods are called by one goroutine at a time. At most two
// sockets are open at a time, and none after Close.
type Checker struct {
	endpoint  apiserver.Endpoint
	p         prober
	headStart time.Duration
	maxAge    time.Duration
	kept      *conn
}

// keptFor is how long a connection is kept. A server that only serves its old
// connections (no file descriptors left, a packet filter that lets established
// ones pass, a balancer that has moved) refuses its new clients, and only a
// new connection shows that. A thousand nodes make 17 handshakes a second, spread
// over the API servers.
const keptFor = time.Minute

// NewChecker makes a checker that has not connected yet. Of cfg, Strength is
// always Ready; Timeout bounds a whole Check with its second attempt.
func NewChecker(e apiserver.Endpoint, cfg Config) *Checker {
	cfg.Strength = Ready
	p := newProber(cfg)
	return &Checker{endpoint: e, p: p, headStart: p.cfg.Timeout * 3 / 8, maxAge: keptFor}
}

// Check asks once, within the timeout. Latency of the result is the time from
// question to answer, without connecting.
//
// With confirm, two attempts must fail before it says so, and the last one is
// on a new connection; so it is, too, when there was a kept one. One failure
// says little: a server or a balancer may close an idle connection, a
// connection table may have forgotten it, one lost SYN costs the kernel a
// second. The second attempt begins at once when the first has failed, and
// beside the first when that is silent for three eighths of the timeout: the
// first that finds it live wins, and the failure of both costs no more time
// than that of one.
func (c *Checker) Check(ctx context.Context, confirm bool) Result {
	if !c.endpoint.Resolved() {
		return c.p.probe(ctx, c.endpoint)
	}
	ctx, cancel := context.WithTimeout(ctx, c.p.cfg.Timeout)
	defer cancel()
	if c.kept != nil && (c.kept.over() || time.Since(c.kept.born) > c.maxAge) {
		c.Close()
	}
	results := make(chan attempt, 2)
	pending := 0
	start := func(k *conn) {
		pending++
		go func() { results <- c.attempt(ctx, k) }()
	}
	again := confirm || c.kept != nil
	start(c.kept)
	c.kept = nil
	silent := time.NewTimer(c.headStart)
	defer silent.Stop()

	var best *attempt
	for pending > 0 {
		select {
		case a := <-results:
			pending--
			if a.result.State == apiserver.Live {
				c.kept = a.conn
				cancel()
				for ; pending > 0; pending-- {
					(<-results).close()
				}
				return a.result
			}
			a.close()
			if best == nil || a.says() < best.says() {
				best = &a
			}
			if again {
				again = false
				start(nil)
			}
		case <-silent.C:
			if again {
				again = false
				start(nil)
			}
		}
	}
	return best.result
}

// Lost is closed when the kept connection ends by itself: the next probe
// should not wait. It is nil when there is none.
func (c *Checker) Lost() <-chan struct{} {
	if c.kept == nil {
		return nil
	}
	return c.kept.lost
}

// Close closes the kept connection. The checker can be used again.
func (c *Checker) Close() {
	if c.kept != nil {
		c.kept.Close()
		c.kept = nil
	}
}

// attempt is one question and what became of it.
type attempt struct {
	result Result
	kept   bool  // asked over a connection that was there
	conn   *conn // nil if it cannot be used again
}

// says orders failed attempts, the one that says most first: an answer, even a bad
// one, then how far a new connection got, then the silence of an old one, whose server
// may have gone.
func (a *attempt) says() int {
	r := &a.result
	switch {
	case r.Status != 0:
		return 0
	case a.kept:
		return 4
	case r.Answers:
		return 1
	case r.Kind != apiserver.KindTimeout:
		return 2
	}
	return 3
}

func (a attempt) close() {
	if a.conn != nil {
		a.conn.Close()
	}
}

// attempt asks over k, or over a new connection if k is nil.
func (c *Checker) attempt(ctx context.Context, k *conn) (a attempt) {
	r := &a.result
	a.kept = k != nil
	r.Endpoint = c.endpoint
	start := time.Now()
	defer func() { r.Latency = time.Since(start) }()
	if k == nil {
		if k = c.p.open(ctx, r); k == nil {
			return a
		}
		start = time.Now()
	} else {
		k.tell(r)
		r.Answers = false // that was another time
	}
	if k.ask(ctx, r, false) {
		a.conn = k
	}
	return a
}
