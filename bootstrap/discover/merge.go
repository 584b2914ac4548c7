package discover

import (
	"context"
	"fmt"
	"slices"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// mergeServices takes the Service IPs of the best source that has any. They
// are not united: a stale one would catch the traffic of whatever Service has
// that address now.
func (s *search) mergeServices() {
	for _, f := range s.findings {
		for _, a := range f.Services {
			switch {
			case len(s.res.Services) == 0 || s.res.Services[0].Source == f.Source:
				s.res.Services = append(s.res.Services, Service{Addr: a, Source: f.Source})
			case !slices.Contains(s.res.ServiceAddrs(), a):
				s.res.notef("%s says that the Service IP is %s; used is what %s says", f.Source, a, s.res.Services[0].Source)
			}
		}
	}
}

// mergeEndpoints unites the endpoints of all sources, or takes the given
// ones alone, and resolves their names.
func (s *search) mergeEndpoints(ctx context.Context) {
	named, cancel := share(ctx, nameShare)
	defer cancel()
	byHand := len(s.cfg.Explicit.Endpoints) > 0
	var names []apiserver.Endpoint
	for _, f := range s.findings {
		if !byHand || explicitSource(f.Source) {
			names = append(names, f.Endpoints...)
		}
	}
	s.resolve(named, names, byHand) // all at once, so that they share the time
	for _, f := range s.findings {
		preferred := f.Source == apiserver.SourceAPI
		if byHand {
			if preferred = explicitSource(f.Source); !preferred {
				continue
			}
		}
		for _, e := range f.Endpoints {
			s.enter(f.Source, e, byHand, preferred)
		}
	}
}

func explicitSource(s apiserver.Source) bool {
	return s == apiserver.SourceFlags || s == apiserver.SourceEnvironment
}

// enter adds one endpoint of a source: its addresses, or itself where the
// name has none.
func (s *search) enter(src apiserver.Source, e apiserver.Endpoint, byHand, preferred bool) {
	if e.Resolved() {
		s.add(src, e, byHand, preferred, "")
		return
	}
	r := s.names[e]
	for _, d := range r.Dropped {
		s.res.notef("%s leads to %s; not used", e, d)
	}
	if len(r.Found) == 0 {
		if s.enterSaved(src, e, byHand, preferred, r.Err) {
			return
		}
		s.add(src, e, byHand, preferred, fmt.Sprint(r.Err))
		return
	}
	for _, a := range r.Found {
		s.add(src, a, byHand, preferred, "")
	}
}

// enterSaved falls back to the addresses that a name had when they were
// saved: at boot there may be no name server yet.
func (s *search) enterSaved(src apiserver.Source, e apiserver.Endpoint, byHand, preferred bool, why error) bool {
	k, err := s.load()
	if err != nil {
		return false
	}
	found := false
	for _, ke := range k.Endpoints {
		if ke.Host == e.Host && ke.Addr.Port() == e.Addr.Port() && ke.Resolved() {
			s.add(src, ke.Endpoint, byHand, preferred, "")
			found = true
		}
	}
	if found {
		s.res.notef("%v; used are the addresses saved %s", why, Ago(k.Age(s.cfg.now())))
	}
	return found
}

// add enters an endpoint into the result, under the rules: never the Service
// IP itself, no loopback unless by hand.
func (s *search) add(src apiserver.Source, e apiserver.Endpoint, byHand, preferred bool, detail string) {
	if slices.Contains(s.res.ServiceAddrs(), e.Addr) {
		s.res.notef("%s gives %s, the Service IP itself; not used", src, e)
		return
	}
	// One that was saved had been given by hand: none that is found gets here.
	if e.Resolved() && e.Addr.Addr().IsLoopback() && !byHand && src != apiserver.SourceCache {
		s.res.notef("%s gives %s, which pods cannot reach; not used", src, e)
		return
	}
	for i := range s.res.Endpoints {
		have := &s.res.Endpoints[i]
		if have.Addr == e.Addr && (e.Resolved() || have.Host == e.Host) {
			if !slices.Contains(have.Sources, src) {
				have.Sources = append(have.Sources, src)
			}
			if have.Host == "" {
				have.Host = e.Host // remember the name: the runtime resolves it again
			}
			have.Preferred = have.Preferred || preferred
			return
		}
	}
	ep := Endpoint{Endpoint: e, Sources: []apiserver.Source{src}, Preferred: preferred, Detail: detail}
	if k, err := s.cache, s.cacheErr; s.loaded && err == nil && k != nil {
		for _, ke := range k.Endpoints {
			if ke.Addr == e.Addr {
				ep.LastLive = ke.LastLive
			}
		}
	}
	s.res.Endpoints = append(s.res.Endpoints, ep)
}

// probe asks the endpoints whether they live, and sorts them.
func (s *search) probe(ctx context.Context) {
	cfg := s.cfg.Probe
	if len(cfg.CA) == 0 {
		cfg.CA = s.ca
	}
	list := make([]apiserver.Endpoint, len(s.res.Endpoints))
	index := make(map[apiserver.Endpoint]*Endpoint, len(list))
	old := s.res.Endpoints
	for i := range old {
		list[i] = old[i].Endpoint
		index[list[i]] = &old[i]
	}
	s.res.Endpoints = make([]Endpoint, 0, len(list))
	for _, r := range apiserver.Probe(ctx, list, cfg) {
		e := *index[r.Endpoint]
		e.State, e.Kind, e.Latency, e.Verified = r.State, r.Kind, r.Latency, r.Verified
		if r.Err != nil && e.Detail == "" {
			e.Detail = r.Err.Error()
		}
		if r.State == apiserver.Live {
			e.LastLive = s.res.at
		}
		s.res.Endpoints = append(s.res.Endpoints, e)
	}
	slices.SortStableFunc(s.res.Endpoints, func(a, b Endpoint) int {
		if a.State != b.State {
			return int(a.State) - int(b.State)
		}
		switch {
		case a.Preferred && !b.Preferred:
			return -1
		case b.Preferred && !a.Preferred:
			return 1
		}
		return 0
	})
}

// families drops discovered Service IPs of a family that has no endpoint,
// and says which endpoints have no Service IP of their family.
func (s *search) families() {
	var have [2]bool
	for _, e := range s.res.Endpoints {
		if e.Resolved() {
			have[familyOf(e.Addr.Addr())] = true
		}
	}
	lacks := func(v Service) bool { return !have[familyOf(v.Addr.Addr())] }
	// If all of them lack endpoints they stay: missing names them.
	if given := len(s.cfg.Explicit.Services) > 0; !given && slices.ContainsFunc(s.res.Services, func(v Service) bool { return !lacks(v) }) {
		for _, v := range s.res.Services {
			if lacks(v) {
				s.res.notef("%s gives the Service IP %s, but no endpoint of its family is known; not used", v.Source, v.Addr)
			}
		}
		s.res.Services = slices.DeleteFunc(s.res.Services, lacks)
	}
	if len(s.res.Services) == 0 {
		return
	}
	var served [2]bool
	for _, v := range s.res.Services {
		served[familyOf(v.Addr.Addr())] = true
	}
	for i := range s.res.Endpoints {
		e := &s.res.Endpoints[i]
		e.unserved = e.Resolved() && !served[familyOf(e.Addr.Addr())]
		if e.unserved {
			s.res.notef("%s is not used: there is no Service IP of its family", e.Endpoint)
		}
	}
}
