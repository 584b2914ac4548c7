package apihealth

import (
	"errors"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// saveSoon makes what is known now worth saving, if it lasts.
func (m *Monitor) saveSoon(now time.Time) {
	due := now.Add(saveDelay)
	if least := m.lastSave.Add(saveInterval); !m.lastSave.IsZero() && due.Before(least) {
		due = least
	}
	if m.saveDue.IsZero() || m.saveDue.After(due) {
		m.saveDue = due
	}
}

// startSave saves if it is due and something lives: what was good while
// nothing answers is in the file already.
func (m *Monitor) startSave(now time.Time) {
	if m.cfg.StateDir == "" || m.saving || m.saveDue.IsZero() || now.Before(m.saveDue) {
		return
	}
	m.saveDue = time.Time{}
	known := m.worthSaving()
	if !m.live() || len(known.Services) == 0 || len(known.Endpoints) == 0 {
		return // a change to the better makes it due again
	}
	m.saving = true
	m.tasks.Go(func() { // a disk can take seconds
		wrote, err := apiserver.Save(apiserver.SaveConfig{StateDir: m.cfg.StateDir, Record: m.cfg.Record}, known)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.saving, m.lastSave = false, time.Now()
		m.saveDue = m.lastSave.Add(refreshInterval)
		m.saved = known
		m.counters.LastSaveError = ""
		if wrote {
			m.counters.Saves++
		}
		if err != nil {
			m.counters.SaveErrors++
			m.counters.LastSaveError = err.Error()
			if !errors.Is(err, apiserver.ErrNewerFormat) {
				m.errorLog.write(m.lastSave, m.cfg.Log.Error, "cannot save the addresses of the API servers; a reboot will find the former ones", "err", err)
			}
		}
		m.notify()
	})
}

// worthSaving gives the first tier whole, since who is down today may be the
// only one tomorrow, and of the second what lives, and what the files of the
// host give by name: a name outlives the addresses that it leads to.
func (m *Monitor) worthSaving() *apiserver.Known {
	k := &apiserver.Known{Services: m.services}
	m.cluster(k)
	if m.watched {
		k.ServicesCertainty = apiserver.Said
	}
	switch {
	case len(m.cfg.Explicit) > 0:
		k.EndpointsCertainty = apiserver.Given
	case len(m.named) > 0:
		k.EndpointsCertainty = apiserver.Said
	}
	if len(k.Services) == 0 && m.saved != nil {
		k.Services = m.saved.Services
	}
	add := func(e apiserver.Endpoint, src apiserver.Source) {
		for _, have := range k.Endpoints {
			if have.Endpoint == e {
				return
			}
		}
		ke := apiserver.KnownEndpoint{Endpoint: e}
		if t := m.targets[e.Addr]; t != nil {
			ke.LastLive = t.lastLive
		} else if i := m.formerIndex(e.Addr); i >= 0 {
			ke.LastLive = m.former[i].LastLive
		}
		k.Endpoints = append(k.Endpoints, ke)
		if k.Source == "" {
			k.Source = string(src)
		}
	}
	for _, e := range m.known() {
		t := m.targets[e.Addr]
		live := t != nil && t.state == apiserver.Live
		if e.Preferred || live {
			add(e.Endpoint, e.Source)
		}
	}
	for _, e := range append(m.firstTier(), m.found...) {
		if e.Resolved() || e.Host == "" {
			continue
		}
		addrs := m.addresses(e.Endpoint)
		for _, a := range addrs {
			n := e
			if n.Endpoint = a; n.Refused(m.serviceAddr) == "" {
				add(a, e.Source)
			}
		}
		if len(addrs) == 0 {
			add(e.Endpoint, e.Source)
		}
	}
	return k
}
