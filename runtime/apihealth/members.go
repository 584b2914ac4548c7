package apihealth

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// sourceAdopted is what the table held when the runtime started.
const sourceAdopted apiserver.Source = "table"

// firstTier is who is asked all the time, names not looked up.
func (m *Monitor) firstTier() []apiserver.Named {
	var out []apiserver.Named
	switch {
	case len(m.cfg.Explicit) > 0:
		for _, e := range m.cfg.Explicit {
			out = append(out, apiserver.Named{Endpoint: e, Source: apiserver.SourceFlags, Preferred: true, ByHand: true})
		}
	case len(m.named) > 0:
		for _, a := range m.named {
			out = append(out, apiserver.Named{Endpoint: apiserver.Endpoint{Addr: a}, Source: apiserver.SourceAPI, Preferred: true})
		}
	default:
		for _, a := range m.cfg.Adopted {
			e := adopted(a)
			e.Preferred = true
			out = append(out, e)
		}
	}
	return out
}

// secondTier is who is asked when none of the first answers.
func (m *Monitor) secondTier() []apiserver.Named {
	if len(m.cfg.Explicit) > 0 {
		return nil
	}
	out := append(slices.Clone(m.found), m.helped...)
	for _, a := range m.cfg.Adopted {
		out = append(out, adopted(a))
	}
	out = append(out, m.savedMembers()...)
	for _, e := range m.former {
		out = append(out, apiserver.Named{Endpoint: e.Endpoint, Source: apiserver.SourceAPI})
	}
	return out
}

func adopted(a netip.AddrPort) apiserver.Named {
	return apiserver.Named{Endpoint: apiserver.Endpoint{Addr: a}, Source: sourceAdopted, ByHand: true}
}

func (m *Monitor) savedMembers() []apiserver.Named {
	var out []apiserver.Named
	if m.saved == nil {
		return nil
	}
	for _, e := range m.saved.Endpoints {
		n := apiserver.Named{Endpoint: e.Endpoint, Source: apiserver.SourceCache, ByHand: true}
		out = append(out, n)
		if e.Host != "" && e.Resolved() { // the name may lead elsewhere by now
			n.Endpoint = unresolved(e.Endpoint)
			out = append(out, n)
		}
	}
	return out
}

// unresolved gives the name of an endpoint that has one.
func unresolved(e apiserver.Endpoint) apiserver.Endpoint {
	return apiserver.Endpoint{Host: e.Host, Addr: netip.AddrPortFrom(netip.Addr{}, e.Addr.Port())}
}

// known gives every endpoint with an address that can be used, the first tier
// first, each address once.
func (m *Monitor) known() []apiserver.Merged {
	var list []apiserver.Named
	for _, n := range append(m.firstTier(), m.secondTier()...) {
		for _, e := range m.addresses(n.Endpoint) {
			if n.Endpoint = e; n.Refused(m.serviceAddr) == "" {
				list = append(list, n)
			}
		}
	}
	out := apiserver.Merge(list)
	return out[:min(len(out), apiserver.MaxEndpoints)]
}

// addresses gives an endpoint itself, or the addresses that its name had last.
func (m *Monitor) addresses(e apiserver.Endpoint) []apiserver.Endpoint {
	if e.Resolved() {
		return []apiserver.Endpoint{e}
	}
	if n, ok := m.names[e]; ok && len(n.addrs) > 0 {
		return n.addrs
	}
	return m.saved.LedTo(e) // not looked up yet, or never with success
}

// serviceAddr reports whether an address is the API service's, or a Service's of the table.
func (m *Monitor) serviceAddr(a netip.AddrPort) bool {
	return slices.Contains(m.services, a) || m.cfg.IsService != nil && m.cfg.IsService(a)
}

// isService is serviceAddr for who doesn't hold the lock.
func (m *Monitor) isService(a netip.AddrPort) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.serviceAddr(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
}

// serviceAddrs are the addresses of the API service.
func (m *Monitor) serviceAddrs() []netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.services)
}

// reconcile starts and stops the goroutines that ask, so that they are those
// of the first tier, and those of the second while none of the first lives.
func (m *Monitor) reconcile(ctx context.Context, now time.Time) {
	firstLives, seconds := false, false
	for _, t := range m.targets {
		firstLives = firstLives || t.Preferred && t.state == apiserver.Live
		seconds = seconds || !t.Preferred
	}
	firstAnswered := seconds || m.firstAnswered(now)
	if !m.changed && (seconds && !firstLives || !seconds && (firstLives || !firstAnswered)) {
		return
	}
	m.changed = false
	wanted := map[netip.AddrPort]apiserver.Named{}
	known := m.known()
	for _, e := range known {
		firstAnswered = firstAnswered && (!e.Preferred || m.targets[e.Addr] != nil)
	}
	for _, e := range known {
		if e.Preferred || !firstLives && firstAnswered {
			wanted[e.Addr] = e.Named
		}
	}
	for a, t := range m.targets {
		if w, ok := wanted[a]; ok && w.Endpoint == t.Endpoint {
			t.Named = w
		} else {
			m.stop(t)
		}
	}
	for a, w := range wanted {
		if m.targets[a] == nil {
			m.start(ctx, w, now)
		}
	}
}

// firstAnswered reports whether there is nothing to be hoped for from the first
// tier without asking the second: each has been asked, or has had its time. A
// list of the API that is all new must not make every node ask a load balancer.
func (m *Monitor) firstAnswered(now time.Time) bool {
	for _, t := range m.targets {
		if t.Preferred && t.state == apiserver.Unknown && now.Sub(t.added) < settleTime {
			return false
		}
	}
	return true
}

func (m *Monitor) start(ctx context.Context, e apiserver.Named, now time.Time) {
	t := &target{Named: e, added: now, since: now}
	if i := m.formerIndex(e.Addr); i >= 0 {
		t.lastLive = m.former[i].LastLive
	}
	ctx, t.cancel = context.WithCancel(ctx)
	m.targets[e.Addr] = t
	m.tasks.Go(func() { m.watch(ctx, t) })
}

func (m *Monitor) stop(t *target) {
	t.cancel()
	t.gone = true
	if !t.lost.IsZero() {
		m.reportLost(t)
	}
	delete(m.targets, t.Endpoint.Addr)
	m.remember(t)
}

// remember keeps an endpoint that once lived, for the day when nothing else does.
func (m *Monitor) remember(t *target) {
	if t.lastLive.IsZero() {
		return
	}
	if i := m.formerIndex(t.Endpoint.Addr); i >= 0 {
		m.former = slices.Delete(m.former, i, i+1)
	}
	m.former = append(m.former, apiserver.KnownEndpoint{Endpoint: t.Endpoint, LastLive: t.lastLive})
	if n := len(m.former) - maxFormer; n > 0 {
		m.former = slices.Delete(m.former, 0, n) // the oldest
	}
}

func (m *Monitor) formerIndex(a netip.AddrPort) int {
	return slices.IndexFunc(m.former, func(e apiserver.KnownEndpoint) bool { return e.Addr == a })
}
