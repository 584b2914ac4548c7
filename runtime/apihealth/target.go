package apihealth

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
)

// target is an endpoint that is asked. Its fields are guarded by Monitor.mu.
type target struct {
	apiserver.Named
	added  time.Time
	cancel context.CancelFunc
	gone   bool // no longer asked: what is still on its way does not count

	state    apiserver.State
	kind     apiserver.Kind
	err      error
	since    time.Time // of the state
	lastLive time.Time
	asked    time.Time
	answers  bool          // of the last probe, see probe.Result
	falls    int           // from live, in the last minute
	fell     time.Time     // the last of them
	streak   int           // good answers in a row while it is not taken for live
	rtt      time.Duration // of the last answer
	probes   uint64
	failures uint64
	log      limiter
	lost     time.Time // since when it gives no answer, while that is not reported yet; else zero
}

// starved is how late a timeout may come to be the endpoint's fault. Beyond that
// this process was stopped, or had no CPU; then every server would look dead.
const starved = 250 * time.Millisecond

// watch asks one endpoint until ctx ends.
func (m *Monitor) watch(ctx context.Context, t *target) {
	checker, generation := m.newChecker(t)
	defer func() { checker.Close() }()
	wait := m.cfg.Interval
	live, hurried := false, false
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
		lost := checker.Lost()
		if hurried { // a server that closes every connection gets no more than two questions an interval
			lost = nil
		}
		if !pause(ctx, start, wait-rand.N(wait/10+1), m.cfg.Interval/4, lost) {
			return
		}
		hurried = closed(lost)
	}
}

// closed reports whether a channel is; nil is not.
func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
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

func (m *Monitor) newChecker(t *target) (*probe.Checker, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return probe.NewChecker(t.Endpoint, probe.Config{
		Timeout: m.cfg.Timeout, Trust: m.trust, Dial: m.cfg.Dial,
	}), m.generation.Load()
}

// report enters what a probe has found.
func (m *Monitor) report(t *target, r probe.Result) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.gone {
		return
	}
	now := time.Now()
	t.asked = now
	m.settle(t, &r)
	t.probes++
	m.counters.Probes++
	if r.State == apiserver.Live {
		t.lastLive, t.rtt = now, r.Latency
	} else {
		t.failures++
		m.counters.Failures++
	}
	was, answered := t.state, t.answering()
	t.kind, t.err, t.answers = r.Kind, r.Err, r.Answers
	if r.State == was && (r.Answers == answered || was == apiserver.Live) {
		return
	}
	if was == apiserver.Live {
		t.fall(now)
	}
	if r.State != was {
		t.since = now
	}
	t.state = r.State
	m.logState(t, was)
	if was == apiserver.Live && !t.answering() {
		t.lost = now
	}
	m.reportAllLost(now)
	m.notify()
}

// answering reports whether an endpoint is not ready, but there.
func (t *target) answering() bool { return t.state == apiserver.NotReady && t.answers }

const (
	// freeFalls are how often an endpoint may stop being ready within steadyTime and be
	// used again with its first good answer. Then it must answer well more and more often in a
	// row, up to maxStreak: one that is ready every other second would change the set as often.
	freeFalls, maxStreak = 3, 8
	steadyTime           = time.Minute
)

func (t *target) fall(now time.Time) {
	if now.Sub(t.fell) > steadyTime {
		t.falls = 0
	}
	t.falls++
	t.fell, t.streak = now, 0
}

// settle takes a good answer of an endpoint that keeps falling for one that is not
// ready yet, while another one is.
func (m *Monitor) settle(t *target, r *probe.Result) {
	if r.State != apiserver.Live {
		t.streak = 0
		return
	}
	t.streak++
	if t.state == apiserver.Live || t.falls <= freeFalls || time.Since(t.fell) > steadyTime {
		return
	}
	need := 1
	for i := freeFalls; i < t.falls && need < maxStreak; i++ {
		need *= 2
	}
	if t.streak >= need || !m.anotherLives(t) {
		return
	}
	r.State, r.Answers, r.Kind = apiserver.NotReady, true, apiserver.KindHTTP
	r.Err = fmt.Errorf("ready, but it was not %d times in a minute: %d of %d good answers in a row", t.falls, t.streak, need)
}

func (m *Monitor) anotherLives(t *target) bool {
	for _, o := range m.targets {
		if o != t && o.state == apiserver.Live && apiserver.Family(o.Endpoint.Addr.Addr()) == apiserver.Family(t.Endpoint.Addr.Addr()) {
			return true
		}
	}
	return false
}

// reportAllLost tells of endpoints that were lost, as soon as another one lives to
// which their clients can go. The only one may be no more than slow: all nodes'
// connections at once, lost and made again, are what it needs least.
func (m *Monitor) reportAllLost(now time.Time) {
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
		m.reportLost(t)
	}
}

func (m *Monitor) reportLost(t *target) {
	if m.cfg.OnLost != nil {
		go m.cfg.OnLost(t.Endpoint.Addr)
	}
}

// logState logs a change of state, but not one of dead to not ready.
func (m *Monitor) logState(t *target, was apiserver.State) {
	live := t.state == apiserver.Live
	if !live && was != apiserver.Live && was != apiserver.Unknown {
		return
	}
	if live {
		t.log.write(t.since, m.cfg.Log.Info, "API server is live", "endpoint", t.Endpoint.String(), "rtt", t.rtt.Round(time.Microsecond))
	} else {
		t.log.write(t.since, m.cfg.Log.Warn, "API server is "+t.state.String(), "endpoint", t.Endpoint.String(), "err", t.err)
	}
}
