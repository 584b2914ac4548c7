package discover

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
	"github.com/firsthop/firsthop/natinit/apiserver/query"
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
	named, cancel := query.Share(ctx, nameShare)
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
	var list []apiserver.Named
	for _, f := range used {
		for _, e := range f.Endpoints {
			list = append(list, s.addresses(apiserver.Named{Endpoint: e, Source: f.Source, ByHand: byHand || f.Source == apiserver.SourceCache,
				Preferred: f.live && f.endpoints > apiserver.Configured})...)
		}
		if len(f.Endpoints) > 0 {
			s.res.endpointsBy = max(s.res.endpointsBy, f.known(f.endpoints))
		}
	}
	s.res.byHand = byHand
	s.merge(append(list, s.useReserve(list)...))
}

// useReserve takes the addresses that were saved on another machine where this
// one knows none at all: its image was cloned, or its machine-id is made anew
// at each boot, and they are of its cluster for certain.
func (s *search) useReserve(known []apiserver.Named) (out []apiserver.Named) {
	if s.reserve == nil || slices.ContainsFunc(known, func(n apiserver.Named) bool { return n.Resolved() && s.refused(n) == "" }) {
		return nil
	}
	s.res.notef("used are the addresses that were saved on another machine, as nothing else is known and they are of this cluster")
	if len(s.res.Services) == 0 {
		for _, a := range s.reserve.Services {
			s.res.Services = append(s.res.Services, Service{Addr: a, Source: apiserver.SourceCache})
		}
	}
	for _, e := range s.reserve.Endpoints {
		if e.Resolved() && !e.Addr.Addr().IsLoopback() {
			out = append(out, apiserver.Named{Endpoint: e.Endpoint, Source: apiserver.SourceCache})
		}
	}
	return out
}

// addresses gives those that a name leads to, or led to when they were saved, or the name itself where it has none.
func (s *search) addresses(n apiserver.Named) (out []apiserver.Named) {
	if n.Resolved() {
		return []apiserver.Named{n}
	}
	r := s.names[n.Endpoint]
	for _, d := range r.Dropped {
		s.res.notef("%s leads to %s; not used", n.Endpoint, d)
	}
	found := r.Found
	if len(found) == 0 {
		if found = s.cache.LedTo(n.Endpoint); len(found) > 0 {
			s.res.notef("%v; used are the addresses saved %s", r.Err, Ago(s.cache.Age(s.cfg.now())))
		} else {
			return []apiserver.Named{n}
		}
	}
	for _, e := range found {
		n.Endpoint = e
		out = append(out, n)
	}
	return out
}

func (s *search) refused(n apiserver.Named) string {
	return n.Refused(func(a netip.AddrPort) bool { return slices.Contains(s.res.ServiceAddrs(), a) })
}

// merge enters what is named into the result, without what is refused.
func (s *search) merge(list []apiserver.Named) {
	list = slices.DeleteFunc(list, func(n apiserver.Named) bool {
		why := s.refused(n)
		if why != "" {
			s.res.notef("%s gives %s, %s; not used", n.Source, n.Endpoint, why)
		}
		return why != ""
	})
	for _, m := range apiserver.Merge(list) {
		e := Endpoint{Endpoint: m.Endpoint, Sources: m.Sources, Preferred: m.Preferred}
		e.Host = m.Name // the runtime resolves it again
		if !e.Resolved() {
			e.Detail = fmt.Sprint(s.names[m.Endpoint].Err)
		}
		if s.cache != nil {
			for _, k := range s.cache.Endpoints {
				if k.Addr == e.Addr {
					e.LastLive = k.LastLive
				}
			}
		}
		s.res.Endpoints = append(s.res.Endpoints, e)
	}
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
	first := func(e Endpoint) int {
		if e.Preferred {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(s.res.Endpoints, func(a, b Endpoint) int {
		return cmp.Or(cmp.Compare(a.State, b.State), cmp.Compare(first(a), first(b)))
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
			have[apiserver.Family(e.Addr.Addr())] = true
		}
	}
	lacks := func(v Service) bool { return !have[apiserver.Family(v.Addr.Addr())] }
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
		served[apiserver.Family(v.Addr.Addr())] = true
	}
	for i := range s.res.Endpoints {
		e := &s.res.Endpoints[i]
		e.unserved = e.Resolved() && !served[apiserver.Family(e.Addr.Addr())]
		if e.unserved {
			why := "there is no Service IP of its family"
			if s.res.noIPv6 != "" && e.Addr.Addr().Is6() {
				why = s.res.noIPv6
			}
			s.res.notef("%s is not used: %s", e.Endpoint, why)
		}
	}
}
