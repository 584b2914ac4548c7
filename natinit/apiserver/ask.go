package apiserver

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

// AskConfig says whom to ask, as whom.
type AskConfig struct {
	// Credentials are tried in order, until one may read the Service.
	Credentials []*Credential
	// Candidates are the addresses to ask at, best first; those without an
	// address are skipped. Loopback ones are welcome here.
	Candidates []Endpoint
	// Dial is the way out; nil is a plain one. Proxies are ignored.
	Dial Dial
	// Thorough asks every question, for a person who wants to see; otherwise
	// the ConfigMaps are asked only if the first answer is not complete.
	Thorough bool
}

// Answer is what the API said.
type Answer struct {
	// Findings are the API's own answer first, then the ConfigMaps'.
	Findings []Finding
	// CA is the CA that the answering server's certificate was verified
	// with, nil if nobody answered.
	CA []byte
}

// Complete reports whether the API itself named its Service and endpoints.
func (a *Answer) Complete() bool {
	return len(a.Findings) > 0 && len(a.Findings[0].Services) > 0 && len(a.Findings[0].Endpoints) > 0
}

// maxAskAtOnce bounds the addresses that are asked at the same time.
const maxAskAtOnce = 16

// Ask asks the API, within ctx, which addresses it has: the Service
// default/kubernetes and its endpoints, and ConfigMaps that name them. For
// each credential all candidates are asked at once, and the first answer
// counts. What a node may read is listed in docs/discovery.md.
func Ask(ctx context.Context, cfg AskConfig) Answer {
	f := Finding{Source: SourceAPI}
	var candidates []Endpoint
	for _, e := range cfg.Candidates {
		if e.Resolved() && !slices.ContainsFunc(candidates, func(c Endpoint) bool { return c.Addr == e.Addr }) {
			candidates = append(candidates, e)
		}
	}
	switch {
	case len(candidates) == 0:
		f.notef("not asked: no address to ask at")
	case len(cfg.Credentials) == 0:
		f.notef("not asked: no credentials on this node")
	}
	if len(f.Notes) > 0 {
		return Answer{Findings: append([]Finding{f}, notAsked("the API was not asked")...)}
	}
	candidates = candidates[:min(len(candidates), maxAskAtOnce)]

	var s *session
	for i, cred := range cfg.Credentials {
		one, cancel := part(ctx, len(cfg.Credentials)-i)
		next, errs := openSession(one, cfg.Dial, cred, candidates)
		cancel()
		f.Notes = append(f.Notes, errs...)
		if next == nil && ctx.Err() != nil {
			break
		}
		if next == nil {
			continue // another CA or identity may do better
		}
		if s != nil {
			s.close()
		}
		s = next
		if s.askService(ctx, &f); !f.Empty() {
			break
		}
	}
	if s == nil {
		return Answer{Findings: append([]Finding{f}, notAsked("no API server answered")...)}
	}
	defer s.close()
	a := Answer{Findings: []Finding{f}, CA: s.cred.CA()}
	if a.Complete() && !cfg.Thorough {
		a.Findings = append(a.Findings, notAsked("not asked: the API's own answer is complete")...)
		return a
	}
	a.Findings = append(a.Findings, s.askConfigMaps(ctx)...)
	return a
}

// part gives one of n equal parts of the time that is left: with one silent
// candidate, a credential of another CA must not use up the time of the next.
func part(ctx context.Context, n int) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok || n <= 1 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)/time.Duration(n))
}

func notAsked(why string) []Finding {
	var out []Finding
	for _, s := range []Source{SourceClusterInfo, SourceKubeadmConfig, SourceKubeProxy, SourceServicesEndpoint} {
		out = append(out, Finding{Source: s, Notes: []string{why}})
	}
	return out
}

// session is a client that talks to one address as one identity.
type session struct {
	cred   *Credential
	at     Endpoint
	base   string // URL of the API's root
	client *http.Client
	// anonymous is the same without the identity.
	anonymous *http.Client
	idle      []*http.Transport
	service   response // of the question that opened it
}

func (s *session) close() {
	for _, t := range s.idle {
		t.CloseIdleConnections()
	}
}

type response struct {
	status int
	body   []byte
}

// openSession asks for the Service at every candidate at once and keeps the
// first that answers, whatever the status. The errors are sentences.
func openSession(ctx context.Context, dial Dial, cred *Credential, candidates []Endpoint) (*session, []string) {
	ctx, cancel := context.WithCancel(ctx)
	type outcome struct {
		s   *session
		err error
		at  Endpoint
	}
	ch := make(chan outcome, len(candidates))
	for _, at := range candidates {
		go func() {
			s, err := newSession(dial, cred, at)
			if err == nil {
				s.service, err = s.get(ctx, s.client, servicePath)
			}
			ch <- outcome{s, err, at}
		}()
	}
	var errs []string
	for i := range candidates {
		select {
		case o := <-ch:
			if o.err == nil {
				cancel()
				go func() { // the others may have answered too
					for range len(candidates) - i - 1 {
						if late := <-ch; late.s != nil {
							late.s.close()
						}
					}
				}()
				return o.s, nil
			}
			errs = append(errs, fmt.Sprintf("%s, with %s: %v", o.at, cred.Path, o.err))
		case <-ctx.Done():
			// An exec plugin does not know of contexts: leave it behind.
			cancel()
			return nil, append(errs, fmt.Sprintf("with %s: no answer in time", cred.Path))
		}
	}
	cancel()
	return nil, errs
}

// newSession builds the client. It does not connect.
func newSession(dial Dial, cred *Credential, at Endpoint) (*session, error) {
	cfg := rest.CopyConfig(cred.config)
	host, path := serverHost(cfg.Host)
	tlsCfg, err := rest.TLSConfigFor(cfg)
	if err != nil {
		return nil, err
	}
	if tlsCfg == nil {
		return nil, errors.New("the kubeconfig's server is not https")
	}
	tlsCfg.NextProtos = []string{"http/1.1"}
	if tlsCfg.ServerName == "" {
		tlsCfg.ServerName = host
	}
	if !tlsCfg.InsecureSkipVerify { // unless the kubeconfig itself asks for it
		// The address may be of another server than the one that the kubeconfig
		// names, so any of the names of an API server will do; the CA must be right.
		names := append(certNames(at), tlsCfg.ServerName)
		roots := tlsCfg.RootCAs
		if roots == nil {
			if roots, err = x509.SystemCertPool(); err != nil {
				return nil, err
			}
		}
		tlsCfg.InsecureSkipVerify = true
		tlsCfg.VerifyConnection = verifyAny(roots, names)
	}
	addr := at.Addr.String()
	transport := func(certificates bool) *http.Transport {
		c := tlsCfg.Clone()
		if !certificates {
			c.Certificates, c.GetClientCertificate = nil, nil
		}
		return &http.Transport{
			TLSClientConfig:    c,
			DisableCompression: true,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return dial.orPlain()(ctx, network, addr)
			},
		}
	}
	own, other := transport(true), transport(false)
	rt, err := rest.HTTPWrappersForConfig(cfg, own)
	if err != nil {
		return nil, err
	}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &session{
		cred: cred, at: at, base: (&url.URL{Scheme: "https", Host: at.Addr.String(), Path: path}).String(),
		client:    &http.Client{Transport: rt, CheckRedirect: stay},
		anonymous: &http.Client{Transport: other, CheckRedirect: stay},
		idle:      []*http.Transport{own, other},
	}, nil
}

func serverHost(server string) (host, path string) {
	u, err := url.Parse(server)
	if err != nil {
		return "", ""
	}
	return u.Hostname(), strings.TrimSuffix(u.Path, "/")
}

// get reads one object. Any HTTP status is an answer, not an error.
func (s *session) get(ctx context.Context, c *http.Client, path string) (response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+path, nil)
	if err != nil {
		return response{}, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "firsthop")
	resp, err := c.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return response{}, plainNetError(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4*hostfs.MaxFile+1))
	if err != nil {
		return response{}, plainNetError(err)
	}
	if len(b) > 4*hostfs.MaxFile {
		return response{}, fmt.Errorf("answer is larger than %d bytes", 4*hostfs.MaxFile)
	}
	return response{resp.StatusCode, b}, nil
}

const (
	servicePath       = "/api/v1/namespaces/default/services/kubernetes"
	serviceListPath   = "/api/v1/namespaces/default/services?fieldSelector=metadata.name%3Dkubernetes"
	endpointsPath     = "/api/v1/namespaces/default/endpoints/kubernetes"
	endpointsListPath = "/api/v1/namespaces/default/endpoints?fieldSelector=metadata.name%3Dkubernetes"
	slicesPath        = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes"
)

// askService asks for the Service and its endpoints. A kubelet may get both
// objects but not list the endpoints; system:node-proxier may list but not get.
func (s *session) askService(ctx context.Context, f *Finding) {
	where := fmt.Sprintf("asked %s with %s", s.at, s.cred.Path)
	var wg sync.WaitGroup
	var eps []Endpoint
	var epsErr error
	wg.Go(func() {
		eps, epsErr = firstOf(ctx, s, []question[Endpoint]{
			{endpointsPath, nil, decodeEndpoints}, {endpointsListPath, nil, decodeEndpointsList}, {slicesPath, nil, decodeSlices}})
	})
	services, err := firstOf(ctx, s, []question[netip.AddrPort]{
		{servicePath, &s.service, decodeService}, {serviceListPath, nil, decodeServiceList}})
	wg.Wait()
	if err != nil {
		f.notef("%s: Service default/kubernetes: %v", where, err)
	}
	if epsErr != nil {
		f.notef("%s: endpoints of default/kubernetes: %v", where, epsErr)
	}
	for _, a := range services {
		f.addService(a)
	}
	for _, e := range eps {
		f.addEndpoint(e)
	}
	if err == nil && epsErr == nil {
		f.notef("%s", where)
	}
}

type question[T any] struct {
	path   string
	known  *response // the answer, where it is there already
	decode func([]byte) ([]T, error)
}

// firstOf asks until an answer is not a refusal.
func firstOf[T any](ctx context.Context, s *session, qs []question[T]) ([]T, error) {
	var first error
	for _, q := range qs {
		var r response
		var err error
		if q.known != nil {
			r = *q.known
		} else {
			r, err = s.get(ctx, s.client, q.path)
		}
		if err == nil {
			err = r.err()
		}
		if err == nil {
			return q.decode(r.body)
		}
		if first == nil {
			first = err
		}
		if r.status != http.StatusForbidden {
			break
		}
	}
	return nil, first
}

// err gives the API's own words for an answer that is not 200.
func (r response) err() error {
	if r.status == http.StatusOK {
		return nil
	}
	var st struct {
		Message string `json:"message"`
	}
	_ = json.Unmarshal(r.body, &st)
	return fmt.Errorf("%d %s", r.status, orElse(clip(st.Message), http.StatusText(r.status)))
}
