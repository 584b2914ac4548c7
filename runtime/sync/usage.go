package sync

import (
	"slices"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/sockets"
)

// usage counts what Service ports use.
type usage struct {
	ranges  int                     // ports with source ranges
	ports   map[sockets.Backend]int // by backend whose sockets end with it; two Services may share one
	leaving []sockets.Backend       // that no port has once the next flush is done
}

// count takes a Service's ports from what they were to what they are.
func (l *Loop) count(before, after []services.Port) {
	u := &l.usage
	hadRanges := u.ranges > 0
	each := func(ports []services.Port, by int) {
		for i := range ports {
			if len(ports[i].SourceRanges) > 0 {
				u.ranges += by
			}
			proto := ports[i].Key.Proto
			if proto != bpf.UDP && !(proto == bpf.TCP && l.cfg.EndTCP) {
				continue
			}
			for _, a := range ports[i].Serving {
				b := sockets.Backend{Proto: proto, Addr: a}
				if u.ports[b] += by; u.ports[b] == 0 {
					delete(u.ports, b)
					u.leaving = append(u.leaving, b)
				}
			}
		}
	}
	each(after, +1)
	each(before, -1)
	if has := u.ranges > 0; has != hadRanges {
		l.publish(SourceRanges(has))
	}
}

// StillGone reports whether no port has a backend.
func (l *Loop) StillGone(b sockets.Backend) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.usage.ports[sockets.Backend{Proto: b.Proto, Addr: b.Addr}] == 0
}

// unused leaves of backends those that no port has again meanwhile.
func (u *usage) unused(backends []sockets.Backend) []sockets.Backend {
	return slices.DeleteFunc(backends, func(b sockets.Backend) bool { return u.ports[b] > 0 })
}
