package apihealth

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// Monitor keeps an eye on the API servers. All methods may be called at any
// time from any goroutine; Run once.
type Monitor struct {
	cfg   Config
	wake  chan struct{}
	turns chan struct{} // see maxProbing
	tasks sync.WaitGroup
	// slowest is the longest wait between two probes.
	slowest time.Duration
	// stale is how long an endpoint may give no answer for its connections to be taken
	// for good still when it does again: its machine may have been started anew.
	stale time.Duration
	// generation counts the CAs, so that checkers notice a new one.
	generation atomic.Uint64

	mu       sync.Mutex // guards all below
	services []netip.AddrPort
	named    []netip.AddrPort     // by the API itself, see SetEndpoints
	found    []apiserver.Named    // in files of the host, where they are used
	podSays  []apiserver.Endpoint // what somebody has set for this pod
	inFiles  []apiserver.Named    // in files of the host, node-local proxies among them
	readAt   time.Time            // when files were read last
	helped   []apiserver.Named    // by asking at node-local proxies
	watched  bool                 // the API itself has named services
	saved    *apiserver.Known     // as read from disk, nil if there is nothing
	former   []apiserver.KnownEndpoint
	names    map[apiserver.Endpoint]name
	trust    *apiserver.Trust // of the node's cluster; nil if no CA is known
	machine  apiserver.Machine
	// othersLogged are the files of other clusters that were reported.
	othersLogged map[string]bool
	changed      bool // what is known has changed since the targets were last compared with it

	targets  map[netip.AddrPort]*target
	current  [2]apiserver.Choice
	given    Set        // what OnChange was given last
	notified *Addresses // what OnKnown was given last; nil: nothing yet
	since    time.Time
	holding  time.Time // since when a change is held back for those not asked yet
	running  bool

	looking  bool // a look is under way
	lookDue  time.Time
	lookWait time.Duration
	saving   bool
	saveDue  time.Time
	lastSave time.Time

	counters Counters
	setLog   limiter
	errorLog limiter

	preparing atomic.Bool // a credential plugin
	pluginLog limiter
}

// New makes a Monitor. It reads and dials nothing yet.
func New(cfg Config) (*Monitor, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	m := &Monitor{
		cfg: cfg, machine: apiserver.MachineOf(cfg.Root), othersLogged: map[string]bool{}, changed: true, slowest: max(deadInterval, cfg.Interval), stale: 15 * time.Second,
		wake: make(chan struct{}, 1), turns: make(chan struct{}, maxProbing),
		targets: map[netip.AddrPort]*target{}, names: map[apiserver.Endpoint]name{},
		services: slices.Clone(cfg.Services),
	}
	if len(cfg.CA) > 0 {
		m.trust = &apiserver.Trust{CA: cfg.CA}
	}
	for f, addrs := range apiserver.Families(cfg.Adopted, func(a netip.AddrPort) netip.AddrPort { return a }) {
		slices.SortFunc(addrs, netip.AddrPort.Compare)
		m.current[f] = apiserver.Choice{Addrs: slices.Compact(addrs), Proven: len(addrs) > 0}
	}
	m.given = Set{m.current[0].Addrs, m.current[1].Addrs}
	return m, nil
}

// SetEndpoints tells what the API itself names as its endpoints: those that
// are ready in the EndpointSlices of default/kubernetes. An empty list changes
// nothing: an API that names none is wrong, not without servers.
func (m *Monitor) SetEndpoints(endpoints []netip.AddrPort) {
	var list []netip.AddrPort
	for _, e := range endpoints {
		if a := netip.AddrPortFrom(e.Addr().Unmap(), e.Port()); a.IsValid() && a.Port() != 0 {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	list = slices.Compact(list)
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(list) == 0 {
		m.errorLog.write(time.Now(), m.cfg.Log.Warn, "the API names no API server; those known stay")
		return
	}
	if slices.Equal(list, m.named) {
		return
	}
	m.named = list
	m.changed = true
	m.notify()
}

// SetServices tells the addresses of the API service. An empty list changes nothing.
func (m *Monitor) SetServices(services []netip.AddrPort) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watched = m.watched || len(services) > 0
	if len(services) == 0 || slices.Equal(services, m.services) {
		return
	}
	m.services = slices.Clone(services)
	m.changed = true
	m.saveSoon(time.Now())
	m.notify()
}

// notify makes Run look at what has changed.
func (m *Monitor) notify() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends, and returns when all that it has started has
// ended. It fails only if it runs already.
func (m *Monitor) Run(ctx context.Context) error {
	m.mu.Lock()
	if m.running {
		m.mu.Unlock()
		return errors.New("run the monitor of API servers: it runs already")
	}
	m.running, m.since = true, time.Now()
	m.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer m.tasks.Wait()
	defer cancel()
	m.readFiles()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		case <-timer.C:
		}
		timer.Reset(m.step(ctx))
	}
}

// step brings everything up to date once and returns how long nothing is due.
func (m *Monitor) step(ctx context.Context) time.Duration {
	now := time.Now()
	m.mu.Lock()
	m.reconcile(ctx, now)
	m.decide(now)
	// What is asked depends on what lives.
	m.reconcile(ctx, now)
	m.startLook(ctx, now)
	m.startSave(now)
	next := min(m.lookDue.Sub(now), refreshInterval)
	if s := m.settling(now); s > 0 {
		next = min(next, s)
	}
	if !m.saveDue.IsZero() && !m.saving {
		next = min(next, m.saveDue.Sub(now))
	}
	set := Set{m.current[0].Addrs, m.current[1].Addrs}
	news := !slices.Equal(set.V4, m.given.V4) || !slices.Equal(set.V6, m.given.V6)
	if news {
		m.given = set
		m.counters.Changes++
	}
	known := m.addressesKnown()
	newKnown := m.notified == nil || !m.notified.equal(known)
	m.notified = &known
	m.mu.Unlock()
	if newKnown && m.cfg.OnKnown != nil {
		m.cfg.OnKnown(Addresses{slices.Clone(known.Anywhere), slices.Clone(known.Reserved)})
	}
	if news {
		// Copies: the receiver may keep them, or sort them otherwise.
		m.cfg.OnChange(Set{slices.Clone(set.V4), slices.Clone(set.V6)})
	}
	return max(next, time.Millisecond)
}

// decide chooses anew.
func (m *Monitor) decide(now time.Time) {
	if m.hold(now) {
		return
	}
	m.holding = time.Time{}
	all := make([]apiserver.Candidate, 0, len(m.targets))
	lives := false
	for _, t := range m.targets {
		c := m.candidate(t)
		all, lives = append(all, c), lives || c.State == apiserver.Live
	}
	if !lives && m.settling(now) > 0 {
		return // nothing to be given out; those of the second tier are being asked
	}
	changed, lived := false, m.live()
	for f, list := range apiserver.Families(all, func(c apiserver.Candidate) netip.AddrPort { return c.Addr }) {
		was, next := m.current[f], apiserver.Choose(m.current[f], list)
		if !slices.Equal(next.Addrs, was.Addrs) || next.Live() != was.Live() || next.Answers() != was.Answers() {
			changed = true
		}
		m.current[f] = next
	}
	if !changed {
		return
	}
	m.since = now
	if m.live() {
		m.saveSoon(now)
	} else if lived {
		m.lookDue, m.lookWait = now, 0
	}
	m.logSet(now)
}

func (m *Monitor) candidate(t *target) apiserver.Candidate {
	return apiserver.Candidate{Addr: t.Addr, Preferred: t.Preferred, State: t.state, Answers: t.answering(), Foreign: m.foreign(t), Recent: m.recent(t)}
}

// inUse reports whether the API service leads to an address.
func (m *Monitor) inUse(a netip.AddrPort) bool {
	return slices.Contains(m.current[apiserver.Family(a.Addr())].Addrs, a)
}

// settling gives how long there are endpoints that are new and have not been
// asked, 0 if there are none.
func (m *Monitor) settling(now time.Time) time.Duration {
	var left time.Duration
	for _, t := range m.targets {
		if t.state == apiserver.Unknown {
			left = max(left, settleTime-now.Sub(t.added))
		}
	}
	return left
}

// hold reports whether a choice had better wait: endpoints are new, and nothing
// is wrong with the current choice.
func (m *Monitor) hold(now time.Time) bool {
	if m.settling(now) <= 0 {
		return false
	}
	for _, c := range m.current {
		for _, a := range c.Addrs {
			if t := m.targets[a]; t != nil && t.state > apiserver.Live {
				return false
			}
		}
	}
	if m.holding.IsZero() {
		m.holding = now
	}
	// Lists that change all the time must not delay it indefinitely.
	return now.Sub(m.holding) < settleTime
}

// live reports whether anything is known to live.
func (m *Monitor) live() bool { return m.current[0].Live() || m.current[1].Live() }

// answers reports whether the API service leads to API servers that answer, ready or not.
func (m *Monitor) answers() bool {
	return m.current[0].Answers() || m.current[1].Answers()
}

// recent reports whether an endpoint fell silent when the last one did, as far as
// probes can tell: each is asked once in an interval.
func (m *Monitor) recent(t *target) bool {
	if t.lastLive.IsZero() || t.state != apiserver.Dead || t.kind != apiserver.KindTimeout && t.kind != apiserver.KindUnreachable {
		return false
	}
	last := t.lastLive
	for _, o := range m.targets {
		if apiserver.Family(o.Endpoint.Addr.Addr()) == apiserver.Family(t.Endpoint.Addr.Addr()) && o.lastLive.After(last) {
			last = o.lastLive
		}
	}
	return last.Sub(t.lastLive) <= m.cfg.Interval
}

func (m *Monitor) logSet(now time.Time) {
	var list []string
	for _, c := range m.current {
		for _, a := range c.Addrs {
			list = append(list, a.String())
		}
	}
	endpoints := strings.Join(list, ",")
	if m.live() {
		m.setLog.write(now, m.cfg.Log.Info, "the API service leads to live API servers", "endpoints", endpoints)
	} else if m.answers() {
		m.setLog.write(now, m.cfg.Log.Warn, "no API server is ready; the API service leads to those that answer", "endpoints", endpoints)
	} else if len(list) > 0 {
		m.setLog.write(now, m.cfg.Log.Warn, "no API server answers; the last known good ones stay", "endpoints", endpoints)
	}
}
