package apihealth

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/query"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/credplugin"
)

// name is what a host name led to last.
type name struct {
	addrs []apiserver.Endpoint
	err   error // of the last question
}

// readFiles reads what needs no network: files of the host and the saved
// addresses.
func (m *Monitor) readFiles() (helpers []apiserver.Endpoint, creds []*sources.Credential) {
	var found, local []apiserver.Named
	saved, _ := m.load()
	id, sources := m.identify(saved)
	if saved != nil && saved.Foreign(m.machine, id.Trust) != "" {
		saved = nil
	}
	for _, f := range sources {
		for _, e := range f.Endpoints {
			found = append(found, apiserver.Named{Endpoint: e, Source: f.Source})
		}
		for _, e := range f.Helpers {
			local = append(local, apiserver.Named{Endpoint: e, Source: f.Source})
		}
		helpers = append(helpers, f.Helpers...)
		creds = append(creds, f.Credentials...)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.readAt = time.Now()
	if inFiles := slices.Concat(found, local); !slices.Equal(inFiles, m.inFiles) {
		m.inFiles = inFiles
	}
	if len(m.cfg.Explicit) == 0 && !slices.Equal(found, m.found) {
		m.found, m.changed = found, true
	}
	if saved != nil {
		m.saved, m.changed = saved, true
	}
	m.follow(id)
	return helpers, creds
}

// sources are the files, in rank order.
func (m *Monitor) sources() []sources.Finding {
	var out []sources.Finding
	if m.cfg.Kubeconfig != "" {
		out = append(out, sources.Kubeconfig(m.cfg.Root, m.cfg.Kubeconfig))
	}
	out = append(out, m.pod())
	return append(out, sources.Files(m.cfg.Root)...)
}

// pod is what this container was told. An address that somebody has set for it is logged, each time that it changes.
func (m *Monitor) pod() sources.Finding {
	f := sources.Pod(m.cfg.Pod)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Equal(f.Endpoints, m.podSays) {
		m.podSays = f.Endpoints
		m.cfg.Log.Info("address of the API server for this pod", "addresses", fmt.Sprint(f.Endpoints), "from", strings.Join(f.Notes, "; "))
	}
	return f
}

func (m *Monitor) load() (*apiserver.Known, error) {
	if m.cfg.StateDir == "" {
		return nil, nil
	}
	return apiserver.Load(m.cfg.StateDir)
}

// startLook starts a look if one is due. While something lives, that is a
// look-up of the names every half minute, and at the files every five minutes or if the CA may have changed; while nothing does, all that
// can be read, looked up and asked, at first every two seconds.
func (m *Monitor) startLook(ctx context.Context, now time.Time) {
	if m.looking {
		m.lookDue = now.Add(lookTime) // it will wake us
		return
	}
	if now.Before(m.lookDue) {
		return
	}
	everything := !m.live()
	if everything {
		m.lookWait = min(max(m.lookWait*3/2, lookInterval), maxLookInterval)
	}
	files := m.otherCA() || now.Sub(m.readAt) >= filesInterval
	m.looking, m.lookDue = true, now.Add(lookTime)
	m.counters.Looks++
	m.tasks.Go(func() {
		life := ctx
		ctx, cancel := context.WithTimeout(life, lookTime)
		defer cancel()
		if everything {
			m.lookEverywhere(ctx, life)
		} else if files {
			m.readFiles()
		}
		m.resolve(ctx, everything)
		m.mu.Lock()
		defer m.mu.Unlock()
		wait := m.lookWait
		switch live := m.live(); {
		case live:
			wait = resolveInterval
		case !everything:
			wait = 0 // the last one has died meanwhile
		}
		m.looking, m.lookDue = false, time.Now().Add(wait)
		m.notify()
	})
}

// otherCA reports whether an endpoint has a certificate that our CA did not
// sign: perhaps there is another CA by now.
func (m *Monitor) otherCA() bool {
	for _, t := range m.targets {
		if t.kind == apiserver.KindTLS {
			return true
		}
	}
	return false
}

// lookEverywhere reads the files again, and asks the node-local proxies of k3s
// and Talos: they cannot be endpoints, but may know some.
func (m *Monitor) lookEverywhere(ctx, life context.Context) {
	helpers, creds := m.readFiles()
	if len(m.cfg.Explicit) > 0 || len(helpers) == 0 || len(creds) == 0 {
		return
	}
	creds = m.ready(life, creds)
	ctx, cancel := context.WithTimeout(ctx, lookTime/2)
	defer cancel()
	resolved, _ := apiserver.Resolve(ctx, m.resolveConfig(true), helpers)
	answer := query.Addresses(ctx, query.Config{Credentials: creds, Candidates: resolved, Dial: m.cfg.Dial, Trust: m.trusted()})
	m.mu.Lock()
	defer m.mu.Unlock()
	var helped []apiserver.Named
	for _, e := range answer.Findings[0].Endpoints {
		helped = append(helped, apiserver.Named{Endpoint: e, Source: apiserver.SourceAPI})
	}
	if len(helped) > 0 && !slices.Equal(helped, m.helped) {
		m.helped, m.changed = helped, true
	}
}

// ready are the credentials without those whose plugin has still to give some:
// it runs meanwhile, for longer than a look, and a later look has what it gave.
func (m *Monitor) ready(life context.Context, creds []*sources.Credential) []*sources.Credential {
	var ready, waiting []*sources.Credential
	for _, c := range creds {
		if c.Ready() {
			ready = append(ready, c)
		} else {
			waiting = append(waiting, c)
		}
	}
	if len(waiting) == 0 || !m.preparing.CompareAndSwap(false, true) {
		return ready
	}
	m.tasks.Go(func() {
		defer m.preparing.Store(false)
		for _, c := range waiting {
			ctx, cancel := context.WithTimeout(life, credplugin.DefaultTime)
			err := c.Prepare(ctx)
			cancel()
			if err != nil && life.Err() == nil {
				m.pluginLog.write(time.Now(), m.cfg.Log.Warn, "credential plugin failed", "err", err)
			}
		}
	})
	return ready
}

func (m *Monitor) resolveConfig(loopback bool) apiserver.ResolveConfig {
	m.mu.Lock()
	defer m.mu.Unlock()
	return apiserver.ResolveConfig{
		Resolver: m.cfg.Resolver, Loopback: loopback,
		Services: slices.Clone(m.services),
	}
}

// resolve looks up the names that clients use, or all.
func (m *Monitor) resolve(ctx context.Context, everything bool) {
	m.mu.Lock()
	list := slices.Concat(m.firstTier(), m.inFiles)
	if everything {
		list = append(list, m.secondTier()...)
	}
	m.mu.Unlock()
	var ask []apiserver.Endpoint
	for _, e := range list {
		if e.Host == "" {
			continue
		}
		if n := unresolved(e.Endpoint); !slices.Contains(ask, n) {
			ask = append(ask, n)
		}
	}
	if len(ask) == 0 {
		return
	}
	_, answers := apiserver.Resolve(ctx, m.resolveConfig(len(m.cfg.Explicit) > 0), ask)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range answers {
		m.enter(r)
	}
	if everything {
		m.forgetNames(ask)
	}
}

// enter follows a changed answer. No answer changes nothing: a name server
// that is down takes no API server with it.
func (m *Monitor) enter(r apiserver.Resolution) {
	n, known := m.names[r.Asked]
	n.err = r.Err
	if r.Err == nil {
		if !slices.Equal(r.Found, n.addrs) {
			if known && n.addrs != nil {
				m.cfg.Log.Info("the name of an API server leads elsewhere", "name", r.Asked.String(), "addresses", len(r.Found), "first", r.Found[0].Addr.String())
			}
			n.addrs, m.changed = r.Found, true
		}
	}
	m.names[r.Asked] = n
}

// forgetNames drops those that nobody gives any more.
func (m *Monitor) forgetNames(asked []apiserver.Endpoint) {
	for e := range m.names {
		if !slices.Contains(asked, e) {
			delete(m.names, e)
		}
	}
}
