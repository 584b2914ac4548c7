// Package query asks the API, with the credentials that a node has, for addresses of API servers and for what its Node
// object says of firsthop.
package query

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/credplugin"
)

// Config says whom to ask, as whom.
type Config struct {
	// Credentials are tried in order, until one may read the Service.
	Credentials []*sources.Credential
	// Candidates are the addresses to ask at, best first; those without an
	// address are skipped. Loopback ones are welcome here.
	Candidates []apiserver.Endpoint
	// Dial is the way out; nil is a plain one. Proxies are ignored.
	Dial probe.Dial
	// Trust verifies the servers that answer; nil leaves it to each
	// credential's own CA. Without either nobody is asked: an answer that
	// cannot be verified is no answer, and a token is sent to nobody unknown.
	Trust *apiserver.Trust
	// PluginTime is how long each credential plugin may take, beside the time
	// of ctx, which continues when it has ended. 0: within ctx.
	PluginTime time.Duration
	// PluginHint says how to give a plugin more time.
	PluginHint string
	// Thorough asks every question, for a person who wants to see; otherwise
	// the ConfigMaps are asked only if the first answer is not complete.
	Thorough bool
}

// Answer is what the API said.
type Answer struct {
	// Findings are the API's own answer first, then the ConfigMaps'.
	Findings []sources.Finding
	// Waited is how long credential plugins took, if Config.PluginTime gave
	// them a time of their own.
	Waited time.Duration
}

// Complete reports whether the API itself named its Service and endpoints.
func (a *Answer) Complete() bool {
	return len(a.Findings) > 0 && len(a.Findings[0].Services) > 0 && len(a.Findings[0].Endpoints) > 0
}

// maxAskAtOnce bounds the addresses that are asked at the same time.
const maxAskAtOnce = 16

// Addresses asks the API, within ctx, for addresses: the Service
// default/kubernetes and its endpoints, and ConfigMaps that name them. For
// each credential all candidates are asked at once. The first that answers
// both questions, or refuses them, counts; one that is sick (500, 503, 429,
// an answer that is none) does not while another may come. What a node may
// read is listed in docs/discovery.md.
func Addresses(ctx context.Context, cfg Config) Answer {
	f := sources.Finding{Source: apiserver.SourceAPI}
	var candidates []apiserver.Endpoint
	for _, e := range cfg.Candidates {
		if e.Resolved() && !slices.ContainsFunc(candidates, func(c apiserver.Endpoint) bool { return c.Addr == e.Addr }) {
			candidates = append(candidates, e)
		}
	}
	var creds []*sources.Credential
	for _, c := range cfg.Credentials {
		if cfg.trust(c) == nil {
			f.Notef("not asked with %s: no CA certificate is known that a server could be verified with", c.Path)
			continue
		}
		creds = append(creds, c)
	}
	switch {
	case len(cfg.Credentials) == 0:
		f.Notef("not asked: no credentials on this node can be used")
	case len(candidates) == 0:
		f.Notef("not asked: no address to ask at")
	}
	if len(candidates) == 0 || len(creds) == 0 {
		return Answer{Findings: append([]sources.Finding{f}, notAsked("the API was not asked")...)}
	}
	candidates = candidates[:min(len(candidates), maxAskAtOnce)]

	var best *asked
	var waited time.Duration
	for i, cred := range creds {
		took, err := cfg.prepare(ctx, cred)
		if took > 0 {
			var cancel context.CancelFunc
			ctx, cancel = Later(ctx, took)
			defer cancel()
			waited += took
		}
		if err != nil {
			f.Notef("%v", err)
			continue
		}
		// With one silent candidate, a credential of another CA must not use up the time of the next.
		one, cancel := Share(ctx, 1/float64(len(creds)-i))
		next, notes := race(one, cfg, cred, candidates)
		cancel()
		f.Notes = append(f.Notes, notes...)
		if next != nil && (best == nil || next.better(best)) {
			best, next = next, best
		}
		if next != nil {
			next.s.close()
		}
		if best != nil && best.complete() || ctx.Err() != nil {
			break
		}
	}
	if best == nil {
		return Answer{Findings: append([]sources.Finding{f}, notAsked("no API server answered")...), Waited: waited}
	}
	defer best.s.close()
	for _, a := range best.services {
		f.AddService(a)
	}
	for _, e := range best.endpoints {
		f.AddEndpoint(e)
	}
	a := Answer{Findings: []sources.Finding{f}, Waited: waited}
	if a.Complete() && !cfg.Thorough {
		a.Findings = append(a.Findings, notAsked("not asked: the API's own answer is complete")...)
		return a
	}
	a.Findings = append(a.Findings, best.s.configMaps(ctx)...)
	return a
}

// trust is what servers are verified with for a credential, nil if nothing is known.
func (c *Config) trust(cred *sources.Credential) *apiserver.Trust {
	if c.Trust.Known() {
		return c.Trust
	}
	return cred.Trust()
}

// prepare runs a credential plugin, where there is one, and says how long it
// took if it had a time of its own.
func (c *Config) prepare(ctx context.Context, cred *sources.Credential) (took time.Duration, err error) {
	if cred.Plugin == nil || ctx.Err() != nil {
		return 0, nil
	}
	began := time.Now()
	if c.PluginTime > 0 {
		var cancel context.CancelFunc
		ctx, cancel = withTime(ctx, c.PluginTime)
		defer cancel()
	}
	err = cred.Prepare(ctx)
	if c.PluginTime > 0 {
		took = time.Since(began)
	}
	var late *credplugin.TimeoutError
	if errors.As(err, &late) && c.PluginHint != "" {
		err = fmt.Errorf("%w: %s", err, c.PluginHint)
	}
	return took, err
}

// Later is ctx with its deadline d later; it ends with ctx for any other reason.
func Later(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return withTime(ctx, time.Until(deadline)+d)
}

// withTime is ctx with another deadline; it ends with ctx for any other reason.
func withTime(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	other, cancel := context.WithTimeout(context.WithoutCancel(ctx), d)
	stop := context.AfterFunc(ctx, func() {
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			cancel()
		}
	})
	return other, func() { stop(); cancel() }
}

// Share is ctx with a part of the time that is left.
func Share(ctx context.Context, part float64) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Duration(part*float64(time.Until(deadline))))
}

func notAsked(why string) []sources.Finding {
	var out []sources.Finding
	for _, c := range sources.ConfigMaps {
		out = append(out, sources.Finding{Source: c.Source, Notes: []string{why}})
	}
	return out
}

// asked is what one server said to one identity.
type asked struct {
	s         *session // nil if it gave no answer at all
	services  []netip.AddrPort
	endpoints []apiserver.Endpoint
	// settled is true when no other server is expected to say more: each
	// question was answered or refused.
	settled bool
	notes   []string
}

func (a *asked) complete() bool { return len(a.services) > 0 && len(a.endpoints) > 0 }

func (a *asked) known() int {
	n := 0
	if len(a.services) > 0 {
		n += 2
	}
	if len(a.endpoints) > 0 {
		n++
	}
	return n
}

func (a *asked) better(o *asked) bool {
	if a.known() != o.known() {
		return a.known() > o.known()
	}
	return a.settled && !o.settled
}

// race asks all candidates at once as one identity, and returns the first
// that settles the questions; else, when all have answered or the time is up,
// the one that said most, if any said something. The notes are of what is
// returned and of those that failed until then.
func race(ctx context.Context, cfg Config, cred *sources.Credential, candidates []apiserver.Endpoint) (*asked, []string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch := make(chan *asked, len(candidates))
	for _, at := range candidates {
		go func() { ch <- askOne(ctx, cfg, cred, at) }()
	}
	var best *asked
	var notes []string
	left := len(candidates)
answers:
	for left > 0 && (best == nil || !best.settled) {
		select {
		case a := <-ch:
			left--
			if a.s != nil && (best == nil || a.better(best)) {
				a, best = best, a
			}
			if a != nil {
				notes = append(notes, a.notes...)
				a.closeSession()
			}
		case <-ctx.Done():
			why := errors.New("no answer in time")
			if err := probe.AwaitRandomness(ctx); err != nil {
				why = err
			}
			notes = append(notes, fmt.Sprintf("with %s: %v", cred.Path, why))
			break answers
		}
	}
	go func() {
		for range left {
			(<-ch).closeSession()
		}
	}()
	if best != nil {
		notes = append(notes, best.notes...)
	}
	return best, notes
}

func (a *asked) closeSession() {
	if a.s != nil {
		a.s.close()
	}
}

// askOne asks one server. A kubelet may get both objects but not list the
// endpoints; system:node-proxier may list but not get.
func askOne(ctx context.Context, cfg Config, cred *sources.Credential, at apiserver.Endpoint) *asked {
	a := &asked{}
	s, err := newSession(cfg, cred, at)
	if err == nil {
		err = probe.AwaitRandomness(ctx)
	}
	var services []netip.AddrPort
	if err == nil {
		services, err = s.services(ctx)
	}
	if s == nil || err != nil && !answered(err) {
		if s != nil {
			s.close()
		}
		a.notes = append(a.notes, fmt.Sprintf("%s, with %s: %v", at, cred.Path, err))
		return a
	}
	a.s, a.services = s, services
	where := fmt.Sprintf("asked %s with %s", at, cred.Path)
	if err != nil {
		a.notes = append(a.notes, fmt.Sprintf("%s: Service default/kubernetes: %v", where, err))
	}
	a.settled = settles(err)
	if a.endpoints, err = s.endpoints(ctx); err != nil {
		a.notes = append(a.notes, fmt.Sprintf("%s: endpoints of default/kubernetes: %v", where, err))
	}
	a.settled = a.settled && settles(err)
	if len(a.notes) == 0 {
		a.notes = append(a.notes, where)
	}
	return a
}

// settles reports whether a question was answered, or refused as every healthy
// server would refuse it.
func settles(err error) bool {
	return err == nil || status(err) == http.StatusUnauthorized || status(err) == http.StatusForbidden
}
