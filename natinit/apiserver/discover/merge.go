package discover

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
)

// mergeServices takes the Service IPs of the source that is most certain, of
// equals the first. They are not united: a stale one would catch the traffic of
// whatever Service has that address now. Defaults of products come later.
func (s *search) mergeServices() {
	best := -1
	for i, f := range s.findings {
		if len(f.read()) > 0 && (best < 0 || s.rank(f) > s.rank(s.findings[best])) {
			best = i
		}
	}
	if best < 0 {
		return
	}
	for _, a := range s.findings[best].read() {
		s.res.Services = append(s.res.Services, Service{Addr: a, Source: s.findings[best].Source})
	}
	s.res.servicesBy = s.findings[best].known(s.findings[best].services)
	for i, f := range s.findings {
		for _, a := range f.read() {
			if i != best && !slices.Contains(s.res.ServiceAddrs(), a) {
				s.res.notef("%s says that the Service IP is %s; used is what %s says", f.Source, a, s.res.Services[0].Source)
			}
		}
	}
}

// known is a certainty as this run knows it: what is given no more is not given.
func (f *finding) known(c apiserver.Certainty) apiserver.Certainty {
	if c == apiserver.Given && !f.live {
		return apiserver.Configured
	}
	return c
}

// read are the Service IPs that a source has read, not those that it guesses.
func (f *finding) read() []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(f.Services), f.IsDefault)
}

// rank orders Service IPs by certainty: what is given, what the API says, what
// was saved of either, what is configured, what was saved of that.
func (s *search) rank(f finding) int {
	r := 2 * int(f.services)
	if f.services == apiserver.Given && !f.live {
		r = 2 * int(apiserver.Said) // it is not given any more
	}
	if f.Source != apiserver.SourceCache || f.live {
		r++
	}
	return r
}

// defaultServices uses the default of a product where nothing better is known,
// if an API server of this cluster has it in its certificate. Alone it is a
// guess: the range may be configured where nobody has looked.
func (s *search) defaultServices() {
	for _, f := range s.findings {
		for _, a := range f.DefaultServices {
			switch {
			case len(s.res.Services) > 0 && !slices.Contains(s.res.ServiceAddrs(), a):
				s.res.notef("the default of %s, %s, is not used: %s says %s", f.Source, a, s.res.Services[0].Source, s.res.Services[0].Addr)
			case len(s.res.Services) > 0:
			case s.certified(a.Addr()):
				s.res.notef("%s is the default of %s, and in the certificate of an API server", a, f.Source)
				s.res.Services = append(s.res.Services, Service{Addr: a, Source: f.Source})
				s.res.servicesBy = apiserver.Configured
			default:
				s.res.notef("%s is only the default of %s, and no API server of this cluster confirms it; not used", a, f.Source)
			}
		}
	}
	s.res.Endpoints = slices.DeleteFunc(s.res.Endpoints, func(e Endpoint) bool {
		return e.Resolved() && slices.Contains(s.res.ServiceAddrs(), e.Addr)
	})
}

// certified reports whether the certificate of a verified API server is for an
// address.
func (s *search) certified(a netip.Addr) bool {
	return slices.ContainsFunc(s.certificates, func(c *x509.Certificate) bool { return c.VerifyHostname(a.String()) == nil })
}

// mergeEndpoints unites the endpoints of all sources, or takes the given
// ones alone, and resolves their names.
func (s *search) mergeEndpoints(ctx context.Context) {
	named, cancel := share(ctx, nameShare)
	defer cancel()
	byHand := len(s.given.Endpoints) > 0
	used := slices.DeleteFunc(slices.Clone(s.findings), func(f finding) bool {
		return byHand && (f.endpoints != apiserver.Given || !f.live)
	})
	var names []apiserver.Endpoint
	for _, f := range used {
		names = append(names, f.Endpoints...)
	}
	s.resolve(named, names, byHand) // all at once, so that they share the time
	for _, f := range used {
		for _, e := range f.Endpoints {
			s.enter(f.Source, e, byHand, f.live && f.endpoints > apiserver.Configured)
		}
		if len(f.Endpoints) > 0 {
			s.res.endpointsBy = max(s.res.endpointsBy, f.known(f.endpoints))
		}
	}
	s.useReserve()
}

// useReserve takes the addresses that were saved on another machine where this
// one knows none at all: its image was cloned, or its machine-id is made anew
// at each boot, and they are of its cluster for certain.
func (s *search) useReserve() {
	if s.reserve == nil || slices.ContainsFunc(s.res.Endpoints, func(e Endpoint) bool { return e.Resolved() }) {
		return
	}
	s.res.notef("used are the addresses that were saved on another machine, as nothing else is known and they are of this cluster")
	if len(s.res.Services) == 0 {
		for _, a := range s.reserve.Services {
			s.res.Services = append(s.res.Services, Service{Addr: a, Source: apiserver.SourceCache})
		}
	}
	for _, e := range s.reserve.Endpoints {
		if e.Resolved() && !e.Addr.Addr().IsLoopback() {
			s.enter(apiserver.SourceCache, e.Endpoint, false, false)
		}
	}
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
	k := s.cache
	if k == nil {
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
	ep := Endpoint{Endpoint: e, Sources: []apiserver.Source{src}, Preferred: preferred, Detail: detail, given: byHand}
	if s.cache != nil {
		for _, ke := range s.cache.Endpoints {
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
	if cfg.Trust != nil {
		cfg.Strength = probe.Ready
	}
	list := make([]apiserver.Endpoint, len(s.res.Endpoints))
	index := make(map[apiserver.Endpoint]*Endpoint, len(list))
	old := s.res.Endpoints
	for i := range old {
		list[i] = old[i].Endpoint
		index[list[i]] = &old[i]
	}
	s.res.Endpoints = make([]Endpoint, 0, len(list))
	for _, r := range probe.Endpoints(ctx, list, cfg) {
		e := *index[r.Endpoint]
		e.State, e.Kind, e.Latency, e.Verified = r.State, r.Kind, r.Latency, r.Verified
		if r.Err != nil && e.Detail == "" {
			e.Detail = r.Err.Error()
		}
		if r.Certificate != nil {
			s.certificates = append(s.certificates, r.Certificate)
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

// loopbacks says who cannot use an endpoint that was given on loopback.
func (s *search) loopbacks() {
	for _, e := range s.res.Usable() {
		if e.Resolved() && e.Addr.Addr().IsLoopback() {
			s.res.notef("%s is on loopback: processes of the host reach it, but pods can't, as each has a loopback of its own", e)
		}
	}
}

// withoutIPv6 leaves out the IPv6 Service IPs where nothing can connect to them:
// settings of a dual-stack cluster come to nodes without IPv6 too.
func (s *search) withoutIPv6() {
	is6 := func(v Service) bool { return v.Addr.Addr().Is6() }
	if !slices.ContainsFunc(s.res.Services, is6) {
		return
	}
	why := noIPv6()
	if why == "" {
		return
	}
	for _, v := range s.res.Services {
		if is6(v) {
			s.res.skipped = append(s.res.skipped, v.Addr)
			s.res.notef("%s is skipped: %s", v.Addr, why)
		}
	}
	s.res.Services = slices.DeleteFunc(s.res.Services, is6)
	s.res.noIPv6 = why
}

// noIPv6 is a variable for tests.
var noIPv6 = apiserver.NoIPv6

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
	s.withoutIPv6()
	// If all of them lack endpoints they stay: missing names them.
	if given := len(s.given.Services) > 0; !given && slices.ContainsFunc(s.res.Services, func(v Service) bool { return !lacks(v) }) {
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
			why := "there is no Service IP of its family"
			if s.res.noIPv6 != "" && e.Addr.Addr().Is6() {
				why = s.res.noIPv6
			}
			s.res.notef("%s is not used: %s", e.Endpoint, why)
		}
	}
}
