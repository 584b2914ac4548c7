package health

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// ProxyMode is what /proxyMode answers. kube-proxy names where its rules are:
// iptables, ipvs, nftables. Who asks draws conclusions from that: Kubernetes' e2e
// suite waits for counters of netfilter where it reads iptables
// (test/e2e/network/kube_proxy.go), and leaves a test out where it reads userspace
// (service.go). None of them is true here.
const ProxyMode = "firsthop"

// DefaultTimeout is kube-proxy's with its defaults: twice its syncPeriod.
const DefaultTimeout = time.Minute

// ToBeDeletedTaint is how the cluster autoscaler marks a node that it is going to delete.
const ToBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// ProxyConfig is what a Proxy needs.
type ProxyConfig struct {
	// Waiting is since when a change waits to be applied, zero when none does. It must not block, and may be called
	// by any goroutine.
	Waiting func() time.Time
	// Applied is when changes were last applied, zero before the first time. As Waiting.
	Applied func() time.Time
	// Serving says why connections are not served at all, nil: they are. As Waiting. nil: they always are.
	Serving func() error
	// Proven says why it is not proven that connections are served, nil: it is. As Waiting. nil: nobody asks /readyz.
	Proven func() error
	// Timeout is for how long a change may wait. 0: DefaultTimeout.
	Timeout time.Duration
	// Answered is called after each answer of "/healthz" or "/livez"; it may be nil.
	Answered func(path string, code int)
	// Clock is nil for time.Now.
	Clock func() time.Time
}

// Proxy knows whether this service proxy keeps up, and answers /healthz, /livez and, unlike kube-proxy, /readyz: whether
// every Service is served, and connections are proven to be.
//
// It is healthy before the first changes were applied: they may have to wait for API servers, while what was in the
// table before is served. It is unhealthy when a change has been waiting for longer than Timeout.
type Proxy struct {
	cfg ProxyConfig

	mu      sync.Mutex
	leaving bool
}

// Report is the body of an answer, with kube-proxy's names. There is no status by family: one table has both.
type Report struct {
	// LastUpdated is the current time where all is well, and when changes were last applied where not: monitors that
	// came with older kube-proxies want it recent.
	LastUpdated time.Time `json:"lastUpdated"`
	CurrentTime time.Time `json:"currentTime"`
	// NodeEligible is false on a node that is about to go. /livez does not ask.
	NodeEligible *bool `json:"nodeEligible,omitempty"`
	Healthy      bool  `json:"healthy"` // of the proxy, whatever becomes of the node
	// Reason says why nothing is served.
	Reason string `json:"reason,omitempty"`
}

// NewProxy makes a Proxy on a node that stays, for all that is known.
func NewProxy(cfg ProxyConfig) *Proxy {
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	return &Proxy{cfg: cfg}
}

// SetNode takes this node's object as it is now; nil: it is deleted. Before the first call the node is taken to stay: an
// agent that starts while no API server answers must not take its node out of every load balancer.
func (p *Proxy) SetNode(node *corev1.Node) {
	leaving := node == nil || !node.DeletionTimestamp.IsZero()
	if node != nil {
		for i := range node.Spec.Taints {
			leaving = leaving || node.Spec.Taints[i].Key == ToBeDeletedTaint
		}
	}
	p.mu.Lock()
	p.leaving = leaving
	p.mu.Unlock()
}

// NodeEligible reports whether the node is to stay.
func (p *Proxy) NodeEligible() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.leaving
}

// Healthy reports whether the proxy keeps up. healthCheckNodePorts want to know, too.
func (p *Proxy) Healthy() bool { return p.report().Healthy }

func (p *Proxy) report() Report {
	// In this order: a change that is applied in between is missed by the first, and then by both.
	waiting, applied := p.cfg.Waiting(), p.cfg.Applied()
	now := p.cfg.Clock()
	late := !applied.IsZero() && !waiting.IsZero() && now.Sub(waiting) >= p.cfg.Timeout
	r := Report{LastUpdated: applied, CurrentTime: now, Healthy: !late}
	if p.cfg.Serving != nil {
		if err := p.cfg.Serving(); err != nil {
			r.Healthy, r.Reason = false, err.Error()
		}
	}
	return r
}

// Handler answers /healthz and /livez.
func (p *Proxy) Handler() http.Handler {
	mux := http.NewServeMux()
	p.Register(mux)
	return mux
}

// Register adds /healthz, /livez and /readyz to a mux.
func (p *Proxy) Register(mux *http.ServeMux) {
	if p.cfg.Proven != nil {
		mux.HandleFunc("/readyz", p.serveReady)
	}
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
		r := p.report()
		p.answer(w, "/livez", r, r.Healthy)
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		r := p.report()
		eligible := p.NodeEligible()
		r.NodeEligible = &eligible
		p.answer(w, "/healthz", r, r.Healthy && eligible)
	})
}

// ErrNoServices is why a node is not ready before the first changes were applied.
var ErrNoServices = errors.New("not all Services are known yet")

// serveReady answers the kubelet's readiness probe: a roll-out waits for a node that is not ready.
func (p *Proxy) serveReady(w http.ResponseWriter, _ *http.Request) {
	r := p.report()
	err := p.cfg.Proven()
	if p.cfg.Applied().IsZero() {
		err = ErrNoServices
	}
	if err != nil && r.Reason == "" {
		r.Reason = err.Error()
	}
	code := http.StatusOK
	if err != nil || !r.Healthy {
		code = http.StatusServiceUnavailable
	}
	answer(w, code, r)
}

// ServeProxyMode answers /proxyMode, which kube-proxy has on its metrics port.
func ServeProxyMode(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = io.WriteString(w, ProxyMode) // who asked may have gone
}

func (p *Proxy) answer(w http.ResponseWriter, path string, r Report, good bool) {
	code := http.StatusServiceUnavailable
	if good {
		code = http.StatusOK
		r.LastUpdated = r.CurrentTime
	}
	if p.cfg.Answered != nil {
		p.cfg.Answered(path, code)
	}
	answer(w, code, r)
}

// answer writes a body with kube-proxy's headers.
func answer(w http.ResponseWriter, code int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(code)
	_, _ = w.Write(text) // who asked may have gone
}
