// Package discover answers the init stage's question: which Service IPs does
// the API service have, and at which addresses do API servers answer?
//
// What the operator gives is used alone. What is missing is looked for in
// every source that natinit/apiserver knows, in rank order: the API's own
// answer, the files of the node, the ConfigMaps of the cluster, and the
// addresses saved by an earlier run. Each source is reported with what it
// gave, or why it gave nothing.
package discover

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// Budget is what names, questions and probes share when the context has no
// deadline: a node's boot waits for it.
const Budget = 2 * time.Second

// Shares of the time that is left: names first, then questions; probes get
// the rest. A name server or an API server that is silent can then not take
// the time of those that come after.
const (
	nameShare = 0.35
	askShare  = 0.6
)

// Config is where to look.
type Config struct {
	// Explicit is what the operator gave (ParseExplicit).
	Explicit Explicit
	// Root is the prefix of the host's paths.
	Root string
	// StateDir has the saved addresses; "" means none.
	StateDir string
	// Pod is what a container was told by the kubelet.
	Pod apiserver.PodEnvironment
	// Probe says how endpoints are probed. Its Dial also asks the API. Its CA
	// is filled in from the node's credentials if empty.
	Probe apiserver.ProbeConfig
	// Resolver looks names up; nil means Go's own.
	Resolver apiserver.Resolver
	// Thorough looks everywhere, also for what was given, for a person who
	// wants to see. The result does not change by it.
	Thorough bool
	// Now is the clock for ages; nil means time.Now.
	Now func() time.Time
	Log *slog.Logger
}

func (c *Config) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// Run finds and probes. With ErrNotFound (and only then) both results are
// set: the Result still lists the sources.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, Budget)
		defer cancel()
	}
	s := &search{cfg: cfg, res: &Result{at: cfg.now()}}
	s.explicit()
	if !cfg.Explicit.complete() || cfg.Thorough {
		s.look(ctx)
	}
	s.mergeServices()
	s.mergeEndpoints(ctx)
	s.probe(ctx)
	s.families()
	s.report()
	s.res.noNulls()
	if cfg.Log != nil {
		for _, n := range s.res.Notes {
			cfg.Log.Info(n)
		}
	}
	return s.res, s.res.missing(&cfg.Explicit)
}

// search is one run.
type search struct {
	cfg      Config
	res      *Result
	findings []apiserver.Finding // in rank order
	cache    *apiserver.Known
	cacheErr error
	loaded   bool
	ca       []byte
	names    map[apiserver.Endpoint]apiserver.Resolution
}

// explicit enters what was given.
func (s *search) explicit() {
	e := &s.cfg.Explicit
	flags := apiserver.Finding{Source: apiserver.SourceFlags}
	env := apiserver.Finding{Source: apiserver.SourceEnvironment}
	at := func(by Given) *apiserver.Finding {
		if by.flag() {
			return &flags
		}
		return &env
	}
	if len(e.Services) > 0 {
		f := at(e.servicesBy)
		f.Services = e.Services
		f.Notes = append(f.Notes, e.servicesBy.Name)
	}
	if len(e.Endpoints) > 0 {
		f := at(e.endpointsBy)
		f.Endpoints = e.Endpoints
		f.Notes = append(f.Notes, e.endpointsBy.Name)
	}
	for _, f := range []*apiserver.Finding{&flags, &env} {
		if f.Empty() {
			f.Notes = []string{"not given"}
		}
	}
	s.findings = []apiserver.Finding{flags, env}
}

// look asks every other source, in rank order.
func (s *search) look(ctx context.Context) {
	local := append(apiserver.FileSources(s.cfg.Root), apiserver.PodSource(s.cfg.Pod))
	cached := s.cacheFinding()
	var creds []*apiserver.Credential
	var candidates, helpers []apiserver.Endpoint
	candidates = append(candidates, s.cfg.Explicit.Endpoints...)
	for _, f := range append(local, cached) {
		creds = append(creds, f.Credentials...)
		candidates = append(candidates, f.Endpoints...)
		helpers = append(helpers, f.Helpers...)
	}
	for _, c := range creds {
		if s.ca == nil {
			s.ca = c.CA()
		}
	}
	ask := apiserver.AskConfig{Credentials: creds, Dial: s.cfg.Probe.Dial, Thorough: s.cfg.Thorough}
	if len(creds) > 0 {
		named, cancel := share(ctx, nameShare)
		ask.Candidates = append(s.resolve(named, candidates, true), s.resolve(named, helpers, true)...)
		cancel()
	}
	asked, cancel := share(ctx, askShare)
	answer := apiserver.Ask(asked, ask)
	cancel()
	if answer.CA != nil {
		s.ca = answer.CA
	}
	s.findings = append(s.findings, answer.Findings[0])
	s.findings = append(s.findings, local...)
	s.findings = append(s.findings, answer.Findings[1:]...)
	s.findings = append(s.findings, cached)
}

// share gives a part of the time that is left.
func share(ctx context.Context, part float64) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, time.Duration(part*float64(time.Until(deadline))))
}

// load reads the saved addresses, once.
func (s *search) load() (*apiserver.Known, error) {
	if !s.loaded {
		s.loaded = true
		if s.cfg.StateDir == "" {
			s.cacheErr = fmt.Errorf("no state directory")
		} else {
			s.cache, s.cacheErr = apiserver.Load(s.cfg.StateDir)
		}
	}
	return s.cache, s.cacheErr
}

func (s *search) cacheFinding() apiserver.Finding {
	f := apiserver.Finding{Source: apiserver.SourceCache}
	k, err := s.load()
	if err != nil {
		f.Notes = []string{err.Error()}
		return f
	}
	f.Services = k.Services
	for _, e := range k.Endpoints {
		f.Endpoints = append(f.Endpoints, e.Endpoint)
	}
	f.Notes = []string{fmt.Sprintf("%s, saved %s, found by %s", apiserver.CachePath(s.cfg.StateDir), Ago(k.Age(s.cfg.now())), k.Source)}
	return f
}

// Ago words for people how long something is past: "3 days ago", "12 minutes
// ago".
func Ago(d time.Duration) string {
	unit := func(n int, name string) string {
		if n == 1 {
			return "1 " + name + " ago"
		}
		return fmt.Sprintf("%d %ss ago", n, name)
	}
	switch {
	case d >= 48*time.Hour:
		return unit(int(d/(24*time.Hour)), "day")
	case d >= 2*time.Hour:
		return unit(int(d/time.Hour), "hour")
	case d >= 2*time.Minute:
		return unit(int(d/time.Minute), "minute")
	}
	return unit(int(d/time.Second), "second")
}

// resolve looks names up, each once a run; byHand keeps loopback addresses.
// Names without an address are left out; why is kept for the report.
func (s *search) resolve(ctx context.Context, endpoints []apiserver.Endpoint, byHand bool) []apiserver.Endpoint {
	var todo []apiserver.Endpoint
	for _, e := range endpoints {
		if _, done := s.names[e]; !e.Resolved() && !done {
			todo = append(todo, e)
		}
	}
	if len(todo) > 0 {
		if s.names == nil {
			s.names = map[apiserver.Endpoint]apiserver.Resolution{}
		}
		_, found := apiserver.Resolve(ctx, apiserver.ResolveConfig{
			Resolver: apiserver.NewResolver(s.cfg.Root, s.cfg.Resolver),
			Services: s.serviceAddrs(), Loopback: byHand}, todo)
		for _, r := range found {
			s.names[r.Asked] = r
		}
	}
	var out []apiserver.Endpoint
	for _, e := range endpoints {
		if e.Resolved() {
			out = append(out, e)
		} else {
			out = append(out, s.names[e].Found...)
		}
	}
	return out
}

func (s *search) serviceAddrs() []netip.AddrPort {
	if len(s.res.Services) > 0 {
		return s.res.ServiceAddrs()
	}
	return s.cfg.Explicit.Services
}
