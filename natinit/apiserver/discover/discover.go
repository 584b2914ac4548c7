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
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
	"github.com/firsthop/firsthop/natinit/apiserver/query"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/credplugin"
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
	// Files gives what the host's files say, for a caller that reads them ahead; nil means sources.Files(Root).
	Files func() []sources.Finding
	// StateDir has the saved addresses; "" means none.
	StateDir string
	// Pod is what a container was told by the kubelet.
	Pod sources.PodEnvironment
	// Probe says how endpoints are probed. Its Dial also asks the API. Its
	// Trust is that of the node's cluster if it is nil; where that is known,
	// endpoints are asked whether they are ready.
	Probe probe.Config
	// Resolver looks names up; nil means Go's own.
	Resolver apiserver.Resolver
	// Machine is the one that this is, apiserver.MachineOf; addresses that were
	// saved on another one are not used.
	Machine apiserver.Machine
	// Boot is set at boot, where no environment tells what the operator gives:
	// what was given when the addresses were saved is given still.
	Boot bool
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
	s := &search{cfg: cfg, res: &Result{at: cfg.now(), retract: !cfg.Boot, machine: cfg.Machine}}
	s.identify()
	s.explicit()
	if !s.given.complete() || cfg.Thorough {
		var cancel context.CancelFunc
		ctx, cancel = query.Later(ctx, s.look(ctx))
		defer cancel()
	}
	s.mergeServices()
	s.mergeEndpoints(ctx)
	s.probe(ctx)
	s.defaultServices()
	s.families()
	s.loopbacks()
	s.report()
	s.res.noNulls()
	if cfg.Log != nil {
		for _, n := range s.res.Notes {
			cfg.Log.Info(n)
		}
	}
	return s.res, s.res.missing()
}

// search is one run.
type search struct {
	cfg      Config
	res      *Result
	given    Explicit // by the operator: now, or at boot when the addresses were saved
	local    []sources.Finding
	findings []finding // in rank order
	cache    *apiserver.Known
	cacheErr error
	reserve  *apiserver.Known // saved on another machine
	id       sources.Identity
	names    map[apiserver.Endpoint]apiserver.Resolution

	certificates []*x509.Certificate // of verified API servers
}

// finding is what a source gave, and how well it knows.
type finding struct {
	sources.Finding
	services, endpoints apiserver.Certainty
	// live is set where the API has just said it, or the operator has given it.
	live bool
}

// identify reads what is on the node, and tells which cluster it is in.
func (s *search) identify() {
	saved, err := (*apiserver.Known)(nil), fmt.Errorf("no state directory")
	if s.cfg.StateDir != "" {
		saved, err = apiserver.Load(s.cfg.StateDir)
	}
	s.cacheErr = err
	var why string
	if err == nil {
		s.cache = saved
		if why = saved.Foreign(s.cfg.Machine, nil); why != "" {
			s.cache = nil
		}
	}
	files := s.cfg.Files
	if files == nil {
		files = func() []sources.Finding { return sources.Files(s.cfg.Root) }
	}
	s.local = append(files(), sources.Pod(s.cfg.Pod))
	if f := s.cfg.Explicit.Kubeadm; f != nil {
		s.local = append([]sources.Finding{*f}, s.local...)
	}
	s.id, s.local = sources.Decide(s.local, s.cache)
	if s.cache != nil {
		why = s.cache.Foreign(s.cfg.Machine, s.id.Trust)
	}
	if why != "" {
		s.cache, s.cacheErr = nil, fmt.Errorf("%s: not used: %s", apiserver.CachePath(s.cfg.StateDir), why)
		s.res.notef("the saved addresses are not used: %s", why)
		if s.id.Trust.Known() && apiserver.SameCA(saved.CA, s.id.Trust.CA) {
			s.reserve = saved
		}
	}
	for _, other := range s.id.Others {
		s.res.notef("%s", other)
	}
	s.res.Cluster = clusterOf(s.id)
	if s.cfg.Probe.Trust == nil {
		s.cfg.Probe.Trust = s.id.Trust
	}
	s.res.Trust = s.cfg.Probe.Trust
}

// Identify tells which cluster the node is in, without asking anybody.
func Identify(cfg Config) sources.Identity {
	s := &search{cfg: cfg, res: &Result{}}
	s.identify()
	return s.id
}

func clusterOf(id sources.Identity) *Cluster {
	if id.By == "" {
		return nil
	}
	return &Cluster{By: id.By, Keys: id.Trust.Fingerprints()}
}

// explicit enters what was given.
func (s *search) explicit() {
	s.given = s.cfg.Explicit
	if s.cfg.Boot && s.cache != nil {
		s.given.remember(s.cache)
	}
	for _, source := range []apiserver.Source{apiserver.SourceFlags, apiserver.SourceEnvironment, apiserver.SourceCache} {
		f := sources.Finding{Source: source}
		if e := &s.given; len(e.Services) > 0 && e.servicesBy.source() == source {
			f.Services = e.Services
			f.Notef("%s", e.servicesBy.Name)
		}
		if e := &s.given; len(e.Endpoints) > 0 && e.endpointsBy.source() == source {
			f.Endpoints = e.Endpoints
			f.Notef("%s", e.endpointsBy.Name)
		}
		if f.Empty() {
			f.Notef("not given")
		}
		if source != apiserver.SourceCache || !f.Empty() {
			s.findings = append(s.findings, finding{f, apiserver.Given, apiserver.Given, true})
		}
	}
	if s.given.Kubeadm != nil {
		f := finding{s.local[0], apiserver.Given, apiserver.Configured, true}
		if s.cfg.Boot { // nobody has given it to this run, and the cluster may have moved on
			f.services, f.live = apiserver.Configured, false
		}
		s.findings = append(s.findings, f)
	}
}

// look asks every other source, in rank order. It returns how much later it is
// by credential plugins, which have a time of their own.
func (s *search) look(ctx context.Context) (waited time.Duration) {
	cached := s.cacheFinding()
	var creds []*sources.Credential
	var candidates, helpers []apiserver.Endpoint
	candidates = append(candidates, s.given.Endpoints...)
	for _, f := range append(s.local, cached.Finding) {
		creds = append(creds, f.Credentials...)
		candidates = append(candidates, f.Endpoints...)
		helpers = append(helpers, f.Helpers...)
	}
	ask := query.Config{PluginTime: s.pluginTime(ctx), PluginHint: pluginHint, Credentials: creds, Dial: s.cfg.Probe.Dial, Trust: s.cfg.Probe.Trust, Thorough: s.cfg.Thorough}
	if len(creds) > 0 {
		named, cancel := query.Share(ctx, nameShare)
		ask.Candidates = append(s.resolve(named, candidates, true), s.resolve(named, helpers, true)...)
		cancel()
	}
	asked, cancel := query.Share(ctx, askShare)
	answer := query.Addresses(asked, ask)
	cancel()
	s.findings = append(s.findings, finding{answer.Findings[0], apiserver.Said, apiserver.Said, true})
	for _, f := range append(s.local, answer.Findings[1:]...) {
		if f.Source == apiserver.SourceKubeadmFile {
			continue // it is among what was given
		}
		s.findings = append(s.findings, finding{f, apiserver.Configured, apiserver.Configured, false})
	}
	s.findings = append(s.findings, cached)
	return answer.Waited
}

// pluginHint goes with the error of a credential plugin that was too slow.
const pluginHint = "give it more time with --timeout (FIRSTHOP_TIMEOUT)"

// pluginTime is what a credential plugin gets: what all else gets together, if
// that is more than a plugin needs.
func (s *search) pluginTime(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return credplugin.DefaultTime
	}
	return max(credplugin.DefaultTime, time.Until(deadline))
}

// cacheFinding is what was saved. Addresses are as certain as they were then if
// they are known to be of this cluster. What was given then and is not given
// now was taken back by the operator: it is still better than a guess.
func (s *search) cacheFinding() finding {
	f := finding{Finding: sources.Finding{Source: apiserver.SourceCache}}
	k := s.cache
	if k == nil {
		f.Notes = []string{s.cacheErr.Error()}
		return f
	}
	f.Services = k.Services
	for _, e := range k.Endpoints {
		f.Endpoints = append(f.Endpoints, e.Endpoint)
	}
	if len(k.CA) > 0 && s.id.Trust.Known() || k.ServicesCertainty == apiserver.Given {
		f.services, f.endpoints = k.ServicesCertainty, k.EndpointsCertainty
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
	return s.given.Services
}
