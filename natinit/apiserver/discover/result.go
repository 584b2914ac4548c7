package discover

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// ErrNotFound: no Service IP, or no endpoint for one, is known from any
// source. The message lists every source.
var ErrNotFound = errors.New("no API server address found")

// Service is a Service IP and port of the API, and who named it.
type Service struct {
	Addr   netip.AddrPort   `json:"address"`
	Source apiserver.Source `json:"source"`
}

// Endpoint is an API server address, who named it, and what its probe said.
type Endpoint struct {
	apiserver.Endpoint
	Sources []apiserver.Source
	// Preferred endpoints were given, or named by the API itself. As long as
	// one of them lives, only they are used: an address from a file may by
	// now belong to another machine.
	Preferred bool
	State     apiserver.State
	Kind      apiserver.Kind
	Latency   time.Duration
	// Verified is true when the probe saw a certificate of the cluster's CA.
	Verified bool
	// Detail is why it is not live.
	Detail string
	// LastLive is when it was last seen live; zero if never.
	LastLive time.Time

	unserved bool // no Service IP of its family
}

// MarshalJSON gives a flat object.
func (e Endpoint) MarshalJSON() ([]byte, error) {
	out := struct {
		Address   string             `json:"address,omitempty"`
		Name      string             `json:"name,omitempty"`
		Sources   []apiserver.Source `json:"sources"`
		Preferred bool               `json:"preferred"`
		State     apiserver.State    `json:"state"`
		Kind      apiserver.Kind     `json:"kind,omitempty"`
		LatencyMS float64            `json:"latency_ms"`
		Verified  bool               `json:"verified,omitempty"`
		Detail    string             `json:"detail,omitempty"`
		LastLive  time.Time          `json:"last_live,omitzero"`
	}{"", "", e.Sources, e.Preferred, e.State, e.Kind, float64(e.Latency.Microseconds()) / 1000, e.Verified, e.Detail, e.LastLive}
	out.Address, out.Name = e.Words()
	return json.Marshal(out)
}

// SourceReport is what one source gave, or why it gave nothing.
type SourceReport struct {
	Source    apiserver.Source     `json:"source"`
	Services  []netip.AddrPort     `json:"services,omitempty"`
	Endpoints []apiserver.Endpoint `json:"endpoints,omitempty"`
	// Used is true when something of the result comes from here.
	Used bool `json:"used"`
	// Notes are sentences for people.
	Notes []string `json:"notes,omitempty"`
}

// Result is what is known about the API service.
type Result struct {
	Services []Service `json:"services"`
	// Endpoints are all that are known: the live ones first, then those that
	// answer without being ready, then the dead; within each by rank.
	Endpoints []Endpoint `json:"endpoints"`
	// Sources are in rank order.
	Sources []SourceReport `json:"sources"`
	// Notes say what was decided on the way.
	Notes []string `json:"notes,omitempty"`
	// Cluster is the one that this node belongs to, nil if nothing tells.
	Cluster *Cluster `json:"cluster,omitempty"`
	// Trust verifies its API servers; nil if no CA is known.
	Trust *apiserver.Trust `json:"-"`

	at                      time.Time
	servicesBy, endpointsBy apiserver.Certainty
	retract                 bool
	byHand                  bool // endpoints are the operator's, perhaps given to an earlier run
	machine                 apiserver.Machine
	skipped                 []netip.AddrPort // Service IPs of a family that this node does not have
	noIPv6                  string           // why it does not
}

// Cluster tells which cluster a node belongs to.
type Cluster struct {
	// By is the file that decided.
	By string `json:"by"`
	// Keys are the SHA-256 fingerprints of the keys of its CA.
	Keys []string `json:"ca_keys,omitempty"`
}

func (r *Result) notef(format string, args ...any) {
	n := fmt.Sprintf(format, args...)
	if !slices.Contains(r.Notes, n) {
		r.Notes = append(r.Notes, n)
	}
}

// ServiceAddrs gives the Service IPs and ports alone.
func (r *Result) ServiceAddrs() []netip.AddrPort {
	out := make([]netip.AddrPort, len(r.Services))
	for i, s := range r.Services {
		out[i] = s.Addr
	}
	return out
}

// Usable gives the endpoints that get a slot, best first, decided for each family by itself: see apiserver.Choose. It is
// never empty for a family that has a Service IP and a known address of this cluster.
func (r *Result) Usable() []apiserver.Endpoint {
	var out []apiserver.Endpoint
	for f := range 2 {
		var candidates []apiserver.Candidate
		for _, e := range r.Endpoints {
			if e.usableIn(f) {
				candidates = append(candidates, r.candidate(e))
			}
		}
		chosen := apiserver.Choose(apiserver.Choice{}, candidates)
		for _, e := range r.Endpoints {
			if slices.Contains(chosen.Addrs, e.Addr) {
				out = append(out, e.Endpoint)
			}
		}
	}
	return out
}

func (r *Result) candidate(e Endpoint) apiserver.Candidate {
	given := r.byHand || slices.ContainsFunc(e.Sources, func(s apiserver.Source) bool { return s.Certainty() == apiserver.Given })
	return apiserver.Candidate{Addr: e.Addr, Preferred: e.Preferred, State: e.State, Answers: e.Verified, Foreign: r.Foreign(e), Given: given}
}

// Foreign reports whether an endpoint answers as another cluster's API server,
// or as something else, does.
func (r *Result) Foreign(e Endpoint) bool {
	return r.Trust.Verifies(e.Endpoint) && e.State == apiserver.Dead && e.Kind == apiserver.KindTLS
}

func (e *Endpoint) usableIn(f int) bool {
	return e.Resolved() && !e.unserved && apiserver.Family(e.Addr.Addr()) == f
}

// Known gives what is worth saving as last known good: the endpoints that
// are given or named by the API, and others that answer. Without any of
// these, everything: it is all that there is.
func (r *Result) Known() *apiserver.Known {
	k := &apiserver.Known{Services: append(r.ServiceAddrs(), r.skipped...), ServicesCertainty: r.servicesBy, EndpointsCertainty: r.endpointsBy,
		Machine: r.machine, Retract: r.retract}
	if r.Trust.Known() {
		k.CA = r.Trust.CA
	}
	authority := slices.ContainsFunc(r.Endpoints, func(e Endpoint) bool { return e.Preferred })
	for _, e := range r.Endpoints {
		switch {
		case e.Preferred, !authority:
		case e.State == apiserver.Live && !slices.Equal(e.Sources, []apiserver.Source{apiserver.SourceCache}):
			// Known to a file of the node, and it answers: the load balancer.
		default:
			continue
		}
		k.Endpoints = append(k.Endpoints, apiserver.KnownEndpoint{Endpoint: e.Endpoint, LastLive: e.LastLive})
	}
	if len(r.Endpoints) > 0 {
		k.Source = string(r.Endpoints[0].Sources[0])
	}
	return k
}

// report fills in the sources.
func (s *search) report() {
	for _, f := range s.findings {
		rep := SourceReport{Source: f.Source, Services: f.Services, Endpoints: f.Endpoints, Notes: f.Notes}
		rep.Used = slices.ContainsFunc(s.res.Services, func(v Service) bool { return v.Source == f.Source }) ||
			slices.ContainsFunc(s.res.Endpoints, func(e Endpoint) bool { return slices.Contains(e.Sources, f.Source) })
		s.res.Sources = append(s.res.Sources, rep)
	}
}

// NotFoundError says what is missing and what each source said. It is
// ErrNotFound.
type NotFoundError struct {
	Missing string
	Sources []SourceReport
}

func (e *NotFoundError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v: %s", ErrNotFound, e.Missing)
	for _, s := range e.Sources {
		fmt.Fprintf(&b, "\n  %s: ", s.Source)
		switch {
		case len(s.Services) > 0 && len(s.Endpoints) > 0, len(s.Notes) == 0:
			fmt.Fprintf(&b, "%d Service IPs, %d endpoints", len(s.Services), len(s.Endpoints))
		default:
			b.WriteString(strings.Join(s.Notes, "; "))
		}
	}
	fmt.Fprintf(&b, "\ngive %s and %s", apiserver.VarServices, apiserver.VarEndpoints)
	return b.String()
}

// Is makes errors.Is(err, ErrNotFound) true.
func (e *NotFoundError) Is(target error) bool { return target == ErrNotFound }

// missing says what the result lacks to be used, or nil.
func (r *Result) missing() error {
	if len(r.Services) == 0 {
		what := "no Service IP"
		if r.noIPv6 != "" {
			what = fmt.Sprintf("no IPv4 Service IP, and IPv6 cannot be used: %s", r.noIPv6)
		}
		return &NotFoundError{what, r.Sources}
	}
	var lack []string
	for _, v := range r.Services {
		ok := slices.ContainsFunc(r.Endpoints, func(e Endpoint) bool {
			return e.usableIn(apiserver.Family(v.Addr.Addr())) && r.candidate(e).Rank() > apiserver.RankNone
		})
		if !ok {
			lack = append(lack, v.Addr.String())
		}
	}
	if len(lack) == 0 {
		return nil
	}
	missing := "no endpoint for the Service IP " + strings.Join(lack, ", ")
	for _, e := range r.Endpoints {
		if !e.Resolved() || r.Foreign(e) {
			missing += fmt.Sprintf(" (%s: %s)", e.Endpoint, e.Detail)
		}
	}
	return &NotFoundError{missing, r.Sources}
}

// noNulls makes empty lists lists in JSON too, so that a script can go through
// them.
func (r *Result) noNulls() {
	if r.Services == nil {
		r.Services = []Service{}
	}
	if r.Endpoints == nil {
		r.Endpoints = []Endpoint{}
	}
}
