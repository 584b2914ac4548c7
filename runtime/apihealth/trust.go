package apihealth

import (
	"bytes"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
)

// identify tells which cluster the node is in, as the init stage does, and gives
// the sources without what is of another one.
func (m *Monitor) identify(saved *apiserver.Known) (sources.Identity, []sources.Finding) {
	if saved != nil && saved.Foreign(m.machine, nil) != "" {
		saved = nil
	}
	return sources.Decide(m.sources(), saved)
}

// follow takes what the node's files say of its cluster. A CA that is not there
// for a moment changes nothing: less is never trusted for more.
func (m *Monitor) follow(id sources.Identity) {
	for _, other := range id.Others {
		if !m.othersLogged[other] {
			m.othersLogged[other] = true
			m.cfg.Log.Warn("files of another cluster are not used", "reason", other)
		}
	}
	if len(m.cfg.CA) > 0 || id.Trust == nil || id.Trust.Equal(m.trust) {
		return
	}
	if m.trust.Known() && !id.Trust.Known() {
		return
	}
	m.trust = id.Trust
	m.generation.Add(1)
}

// trusted is what certificates are verified with, nil if nothing is known.
func (m *Monitor) trusted() *apiserver.Trust {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.trust
}

// foreign reports whether another cluster's server, or no API server at all, is
// at a target's address.
func (m *Monitor) foreign(t *target) bool {
	return t.kind == apiserver.KindTLS && m.trust.Verifies(t.Endpoint)
}

// cluster binds what is saved to the cluster and the machine.
func (m *Monitor) cluster(k *apiserver.Known) {
	k.Machine = m.machine
	if m.trust.Known() {
		k.CA = bytes.Clone(m.trust.CA)
	}
}
