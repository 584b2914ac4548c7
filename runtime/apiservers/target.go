package apiservers

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// target is an endpoint that is asked. Its fields are guarded by Monitor.mu.
type target struct {
	endpoint apiserver.Endpoint
	source   apiserver.Source
	first    bool
	added    time.Time
	cancel   context.CancelFunc
	gone     bool // no longer asked: what is still on its way does not count

	state    apiserver.State
	kind     apiserver.Kind
	err      error
	since    time.Time // of the state
	lastLive time.Time
	rtt      time.Duration // of the last answer
	probes   uint64
	failures uint64
	says     limiter
	lost     time.Time // since when it gives no answer, while that is still to be told; zero: it is not
}

// starved is how late a timeout may come to be the endpoint's fault. Beyond that
// this process was stopped, or had no CPU; then every server would look dead.
const starved = 250 * time.Millisecond

// watch asks one endpoint until ctx ends.
func (m *Monitor) watch(ctx context.Context, t *target) {
	checker, generation := m.newChecker(t)
	defer func() { checker.Close() }()
	wait := m.cfg.Interval
	live := false
	for {
		if m.generation.Load() != generation { // another CA
			checker.Close()
			checker, generation = m.newChecker(t)
		}
		if !live && !m.turn(ctx) {
			return
		}
		start := time.Now()
		// What was live gets a second chance on a new connection; see Check.
		r := checker.Check(ctx, live)
		if r.Kind == apiserver.KindTimeout && time.Since(start) > m.cfg.Timeout+starved {
			start = time.Now()
			r = checker.Check(ctx, live)
		}
		if !live {
			<-m.turns
		}
		if ctx.Err() != nil {
			return
		}
		m.report(t, r)
		if live = r.State == apiserver.Live; live {
			wait = m.cfg.Interval
		} else {
			wait = min(wait*3/2, m.slowest)
		}
		// Jitter goes down only, so that the promise of two seconds holds. It keeps
		// the probes of all nodes, and of all endpoints of a node, apart.
		if !pause(ctx, start, wait-rand.N(wait/10+1), m.cfg.Interval/4, checker.Lost()) {
			return
		}
	}
}

// turn waits until one more endpoint without life may be asked.
func (m *Monitor) turn(ctx context.Context) bool {
	select {
	case m.turns <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// pause waits until wait has passed since start; if lost is closed, only until
// least has passed: a server that closes every connection right after its
// answer shall not be asked without a pause.
func pause(ctx context.Context, start time.Time, wait, least time.Duration, lost <-chan struct{}) bool {
	timer := time.NewTimer(time.Until(start.Add(wait)))
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		case <-lost:
			lost = nil
			timer.Reset(min(time.Until(start.Add(least)), time.Until(start.Add(wait))))
		}
	}
}

func (m *Monitor) newChecker(t *target) (*apiserver.Checker, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return apiserver.NewChecker(t.endpoint, apiserver.ProbeConfig{
		Timeout: m.cfg.Timeout, Trust: m.trust, Dial: m.cfg.Dial,
	}), m.generation.Load()
}

// report enters what a probe has found.
func (m *Monitor) report(t *target, r apiserver.ProbeResult) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.gone {
		return
	}
	now := time.Now()
	t.probes++
	m.counters.Probes++
	if r.State == apiserver.Live {
		t.lastLive, t.rtt = now, r.Latency
	} else {
		t.failures++
		m.counters.Failures++
	}
	was := t.state
	t.kind, t.err = r.Kind, r.Err
	if r.State == was {
		return
	}
	t.state, t.since = r.State, now
	m.sayState(t, was)
	if was == apiserver.Live && r.Kind != apiserver.KindHTTP {
		t.lost = now
	}
	m.tellLost(now)
	m.poke()
}

// tellLost tells of endpoints that were lost, as soon as another one lives to
// which their clients can go. The only one may be no more than slow: all nodes'
// connections at once, lost and made again, are what it needs least.
func (m *Monitor) tellLost(now time.Time) {
	another := false
	for _, t := range m.targets {
		another = another || t.state == apiserver.Live
	}
	for _, t := range m.targets {
		switch back := t.state == apiserver.Live; {
		case t.lost.IsZero(), !back && !another:
			continue
		case back && now.Sub(t.lost) < m.stale:
			t.lost = time.Time{}
			continue
		}
		t.lost = time.Time{}
		m.sayLost(t)
	}
}

func (m *Monitor) sayLost(t *target) {
	if m.cfg.OnLost != nil {
		go m.cfg.OnLost(t.endpoint.Addr)
	}
}

// sayState logs a change of state, but not one of dead to not ready.
func (m *Monitor) sayState(t *target, was apiserver.State) {
	live := t.state == apiserver.Live
	if !live && was != apiserver.Live && was != apiserver.Unknown {
		return
	}
	ok, left := t.says.allow(t.since)
	switch {
	case !ok:
	case live:
		m.cfg.Log.Info("API server is live", "endpoint", t.endpoint.String(), "rtt", t.rtt.Round(time.Microsecond), "unsaid", left)
	default:
		m.cfg.Log.Warn("API server is "+t.state.String(), "endpoint", t.endpoint.String(), "reason", t.err, "unsaid", left)
	}
}

// limiter lets a few lines pass at once, and then one in half a minute.
type limiter struct {
	left   int
	since  time.Time
	unsaid int
}

const (
	sayAtOnce = 6
	sayEvery  = 30 * time.Second
)

// allow reports whether a line may be written now, and how many were not since the last.
func (l *limiter) allow(now time.Time) (ok bool, unsaid int) {
	if l.since.IsZero() {
		l.left, l.since = sayAtOnce, now
	}
	if n := int(now.Sub(l.since) / sayEvery); n > 0 {
		l.left, l.since = min(l.left+n, sayAtOnce), now
	}
	if l.left == 0 {
		l.unsaid++
		return false, 0
	}
	l.left--
	unsaid, l.unsaid = l.unsaid, 0
	return true, unsaid
}
