package apihealth

import (
	"net/netip"
	"slices"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// leaveTime is how long a server that was left is dialled after all others. It bounds
// how often the client moves, too: where none gives what is asked for, moving is of no use.
const leaveTime = time.Minute

// Leave tells that the servers that the open connections lead to answer, but with nothing
// that can be used. A client stays on its connection as long as it can, so that one sick
// server, ready by its own word, would hide the healthy ones indefinitely. The connections
// are closed and others dialled, if another server lives that was not left just before.
func (d *Dialer) Leave() {
	now := time.Now()
	live, services := d.cfg.Monitor.alive(), d.cfg.Monitor.serviceAddrs()
	d.mu.Lock()
	var drop []netip.AddrPort
	for _, to := range d.kept.open() {
		if !slices.Contains(live, to) && !slices.Contains(services, to) {
			continue // it gives no answers; its turn comes when it lives
		}
		if d.hasLeft(to, now) || !slices.ContainsFunc(live, func(a netip.AddrPort) bool { return a != to && !d.hasLeft(a, now) }) {
			continue
		}
		if d.left == nil {
			d.left = map[netip.AddrPort]time.Time{}
		}
		d.left[to] = now
		drop = append(drop, to)
	}
	d.mu.Unlock()
	for _, to := range drop {
		d.cfg.Log.Warn("an API server answers, but not what is asked for: another one is asked", "endpoint", to, "connections", d.kept.drop(to))
	}
}

// hasLeft reports whether a server was left within leaveTime. d.mu is held.
func (d *Dialer) hasLeft(a netip.AddrPort, now time.Time) bool {
	at, ok := d.left[a]
	if ok && now.Sub(at) >= leaveTime {
		delete(d.left, a)
		return false
	}
	return ok
}

// passBy puts the servers that were left behind all others, and reports whether there are any.
func (d *Dialer) passBy(order []apiserver.Endpoint) ([]apiserver.Endpoint, bool) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	for a := range d.left {
		d.hasLeft(a, now)
	}
	var first, last []apiserver.Endpoint
	for _, e := range order {
		if d.hasLeft(e.Addr, now) {
			last = append(last, e)
		} else {
			first = append(first, e)
		}
	}
	return append(first, last...), len(d.left) > 0
}

// alive are the servers that live.
func (m *Monitor) alive() []netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []netip.AddrPort
	for a, t := range m.targets {
		if t.state == apiserver.Live {
			out = append(out, a)
		}
	}
	return out
}
