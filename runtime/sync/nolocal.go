package sync

import "github.com/firsthop/firsthop/runtime/services"

// noLocal is how many Service ports, by family, have a Local policy and
// endpoints, but none of these on this node: their connections are dropped.
type noLocal struct{ internal, external int }

func (n *noLocal) count(ports []services.Port, by int) {
	for i := range ports {
		internal, external := ports[i].NoLocal()
		if internal {
			n.internal += by
		}
		if external {
			n.external += by
		}
	}
}

// NoLocal is how many Service ports, by family, have no endpoint on this node
// where internalTrafficPolicy and externalTrafficPolicy want one, while there are
// some elsewhere. It may be asked for at any time, by any goroutine.
func (l *Loop) NoLocal() (internal, external int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.noLocal.internal, l.noLocal.external
}
