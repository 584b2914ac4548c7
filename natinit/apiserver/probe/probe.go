// Package probe finds out whether an API server answers at an address: by TCP, by TLS with a certificate of the cluster,
// or by /readyz. A Checker does the same again and again, over one kept connection.
package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// Dial opens a connection. A caller that must dial with a mark, or from
// another network namespace, gives its own; nil means a plain net.Dialer.
// Proxy variables are ignored either way.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

func (d Dial) OrPlain() Dial {
	if d != nil {
		return d
	}
	// KeepAlive off: a probe lives for milliseconds, and it saves system calls.
	return (&net.Dialer{KeepAlive: -1}).DialContext
}

// Strength is how much a probe asks for.
type Strength int

const (
	// TCP is satisfied when the connection is accepted.
	TCP Strength = iota
	// Verified asks for TLS with a certificate of the node's cluster (Trust).
	// Where none can be verified, it asks for no more than TCP.
	Verified
	// Ready asks for TLS and GET /readyz: 2xx, 401 and 403 are live. (An API
	// server with anonymous requests switched off, or without the default
	// role for the public, refuses the question, but it is up.)
	Ready
)

func (s Strength) String() string {
	return [...]string{"tcp", "verified", "ready"}[s]
}

// Config says how to probe.
type Config struct {
	Strength Strength
	// Timeout bounds one endpoint's probe, connect and answer together;
	// 0 means one second. ctx bounds all of them.
	Timeout time.Duration
	// ReadyWait bounds the answer to /readyz; 0 leaves it the Timeout.
	ReadyWait time.Duration
	// Trust verifies certificates. With it, a server of another cluster that
	// has taken over an address is found out. Without it nothing is verified: a
	// probe sends no credentials and believes nothing of what it reads but the
	// status code.
	Trust *apiserver.Trust
	// Dial is the way out; nil is a plain one.
	Dial Dial
}

// Result is what became of one endpoint.
type Result struct {
	Endpoint apiserver.Endpoint
	State    apiserver.State
	// Latency is the time to the answer; for a dead one, to the failure.
	Latency time.Duration
	Kind    apiserver.Kind
	// Status is the HTTP status of /readyz, 0 if there was none.
	Status int
	// Answers is true when a new connection got as far as TLS, with a certificate that
	// counts, or /readyz had any answer: what is not ready is then slow or sick, but there.
	Answers bool
	// Verified is true when the certificate is of the cluster's CA.
	Verified bool
	// Certificate is the server's, if it is verified.
	Certificate *x509.Certificate
	// Err is why the endpoint is not live, nil if it is.
	Err error
}

const (
	probeTimeout = time.Second
	// maxProbes bounds the sockets in use at a time.
	maxProbes = 64
)

// Endpoints asks every endpoint at once and returns the results, live ones
// first, then those that answer without being ready, then the dead; within
// each in the order given. It returns after the slowest one, at most after
// the timeout (times the number of endpoints over 64), or when ctx ends.
func Endpoints(ctx context.Context, endpoints []apiserver.Endpoint, cfg Config) []Result {
	p := newProber(cfg)
	out := make([]Result, len(endpoints))
	if len(endpoints) == 1 {
		out[0] = p.probe(ctx, endpoints[0])
		return out
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxProbes)
	for i, e := range endpoints {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			out[i] = p.probe(ctx, e)
		})
	}
	wg.Wait()
	slices.SortStableFunc(out, func(a, b Result) int { return int(a.State) - int(b.State) })
	return out
}

type prober struct {
	cfg  Config
	dial Dial
}

func newProber(cfg Config) prober {
	if cfg.Timeout <= 0 {
		cfg.Timeout = probeTimeout
	}
	return prober{cfg: cfg, dial: cfg.Dial.OrPlain()}
}

func (p *prober) probe(ctx context.Context, e apiserver.Endpoint) (r Result) {
	r.Endpoint = e
	if !e.Resolved() {
		r.State, r.Kind, r.Err = apiserver.Dead, apiserver.KindUnresolved, fmt.Errorf("%s has no address", e.Host)
		return r
	}
	start := time.Now()
	defer func() { r.Latency = time.Since(start) }()
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	if c := p.open(ctx, &r); c != nil {
		defer c.Close()
		if p.cfg.ReadyWait > 0 {
			ctx, cancel = context.WithTimeout(ctx, p.cfg.ReadyWait)
			defer cancel()
		}
		c.ask(ctx, &r, true)
	}
	return r
}

// open connects to an endpoint, and shakes hands. It gives no connection where
// the result says all already.
func (p *prober) open(ctx context.Context, r *Result) *conn {
	e := r.Endpoint
	raw, err := p.dial(ctx, "tcp", e.Addr.String())
	if err != nil {
		r.fail(apiserver.Dead, err)
		return nil
	}
	if p.cfg.Strength == TCP || p.cfg.Strength == Verified && !p.cfg.Trust.Verifies(e) {
		raw.Close()
		r.State = apiserver.Live
		return nil
	}
	var v apiserver.Verdict
	tc := tls.Client(raw, p.tlsConfig(e, &v))
	if err = AwaitRandomness(ctx); err == nil {
		err = tc.HandshakeContext(ctx)
	}
	if err != nil {
		raw.Close()
		r.handshakeFailed(err)
		return nil
	}
	c := newConn(raw, tc, v)
	c.tell(r)
	if v.Expired != nil {
		r.State, r.Kind, r.Err = apiserver.NotReady, apiserver.KindExpired, v.Expired
	} else if p.cfg.Strength == Verified {
		r.State = apiserver.Live
	}
	if r.State != apiserver.Unknown {
		c.Close()
		return nil
	}
	return c
}

// fail enters a failure of the network's.
func (r *Result) fail(state apiserver.State, err error) {
	r.State, r.Kind, r.Err = state, errorKind(err), Plain(err)
}

// handshakeFailed enters why TLS did not come about.
func (r *Result) handshakeFailed(err error) {
	r.fail(apiserver.NotReady, err)
	if errors.Is(err, ErrNoRandomness) {
		r.Kind, r.Err = apiserver.KindRandomness, err // no fault of the server's
		return
	}
	if r.Kind == apiserver.KindTLS || r.Kind == apiserver.KindOther {
		r.State, r.Kind = apiserver.Dead, apiserver.KindTLS
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) && unknown.Cert != nil {
			r.Err = fmt.Errorf("its certificate, issued by %q, is not signed by this cluster's CA", apiserver.Clip(unknown.Cert.Issuer.String()))
		}
		r.Err = fmt.Errorf("not an API server of this cluster: %w", r.Err)
	}
}

// answerFailed enters why there is no answer over TLS.
func (r *Result) answerFailed(err error) {
	r.fail(apiserver.NotReady, err)
	if r.Kind == apiserver.KindOther {
		r.State, r.Kind = apiserver.Dead, apiserver.KindHTTP
	}
}

// judge enters what the status of /readyz means.
func (r *Result) judge(status int) {
	r.Status, r.Answers = status, true
	switch {
	case status >= 200 && status < 300, status == http.StatusUnauthorized, status == http.StatusForbidden:
		r.State = apiserver.Live
	default:
		r.State, r.Kind = apiserver.NotReady, apiserver.KindHTTP
		r.Err = fmt.Errorf("/readyz says %d %s", status, http.StatusText(status))
	}
}

func (p *prober) tlsConfig(e apiserver.Endpoint, v *apiserver.Verdict) *tls.Config {
	c := &tls.Config{
		// A name goes into SNI, since load balancers choose by it; an address
		// sends none, as the clients of the Service IP do.
		ServerName:         e.Host,
		NextProtos:         []string{"http/1.1"},
		InsecureSkipVerify: true, // verified below, where it can be; see Config.Trust
	}
	c.VerifyConnection = p.cfg.Trust.Verifier(e, v)
	return c
}

// errorKind sorts an error of dialling, TLS or reading.
func errorKind(err error) apiserver.Kind {
	var (
		netErr  net.Error
		certErr *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		alert   tls.AlertError
	)
	switch {
	case errors.As(err, &certErr), errors.As(err, &record), errors.As(err, &alert):
		return apiserver.KindTLS
	case errors.Is(err, syscall.ECONNREFUSED):
		return apiserver.KindRefused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH),
		errors.Is(err, syscall.EHOSTDOWN), errors.Is(err, syscall.ENETDOWN), errors.Is(err, syscall.EADDRNOTAVAIL):
		return apiserver.KindUnreachable
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &netErr) && netErr.Timeout():
		return apiserver.KindTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return apiserver.KindClosed
	}
	return apiserver.KindOther
}

// Explain sorts an error of dialling or reading, and words it for a message
// that names the address by itself.
func Explain(err error) (apiserver.Kind, error) { return errorKind(err), Plain(err) }

// Plain drops "dial tcp 10.0.0.1:6443:" from an error that is shown
// next to its endpoint.
func Plain(err error) error {
	switch errorKind(err) {
	case apiserver.KindRefused:
		return errors.New("connection refused")
	case apiserver.KindTimeout:
		return errors.New("no answer in time")
	case apiserver.KindClosed:
		return errors.New("connection accepted, then closed")
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil && !strings.HasPrefix(op.Op, "remote") {
		var se *os.SyscallError
		if errors.As(op.Err, &se) {
			return se.Err
		}
		return op.Err
	}
	return err
}
