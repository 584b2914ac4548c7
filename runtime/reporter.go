package runtime

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/natinit/apiserver/query"
	"github.com/firsthop/firsthop/runtime/admin"
	"github.com/firsthop/firsthop/runtime/dataplane"
	"github.com/firsthop/firsthop/runtime/health"
	"github.com/firsthop/firsthop/runtime/metrics"
	"github.com/firsthop/firsthop/runtime/nodestatus"
	"github.com/firsthop/firsthop/runtime/sockets"
	"github.com/firsthop/firsthop/runtime/uplinks"
)

// reporter is what others see of the runtime: health, metrics, the Node's label
// and condition.
type reporter struct {
	run     *run
	proxy   *health.Proxy
	checks  *health.Services // healthCheckNodePorts
	metrics *metrics.Metrics
	node    *nodestatus.Reporter // nil: the Node is not written to
	servers []*health.Server     // of /healthz and of metrics

	mu     sync.Mutex
	proof  error     // of the last proof; nil: it succeeded
	proven bool      // there was one
	at     time.Time // when the last one succeeded
	fails  int       // in a row
}

// proofInterval is how often it is proven that connections are served.
const proofInterval = 10 * time.Second

// firstProofInterval is how often that is tried until there is something to prove.
const firstProofInterval = time.Second

// failsUntilFallback is how many proofs in a row fail before the node says that
// firsthop doesn't serve it: one may have met a change of programs.
const failsUntilFallback = 3

func newReporter(r *run) *reporter {
	o := &reporter{run: r}
	m := metrics.New(metrics.Config{
		Version: r.cfg.Version, Log: r.cfg.Log,
		Table: r.writer.Status, Watches: r.watcher.Status, APIServers: r.monitor.Status, Dialer: r.dialer.Status,
		SocketMaps: r.data.SocketMaps, Problems: r.problemsByReason, Unserved: func() []health.Unserved { return o.checks.Unserved() },
		Counters: func(each func(uint32, bpf.Counters)) error {
			return metrics.ReadCounters(r.data.Counters(), r.data.Features().Batch, r.writer.Indexes)(each)
		},
		Indexes: r.writer.Indexes, PerService: r.cfg.ServiceMetrics, NoLocal: r.loop.NoLocal,
		Sockets:    func() sockets.Status { return r.sockets.Status() }, // made when the table is taken over
		PacketPath: func() *uplinks.Status { return r.packets.status() },
	})
	o.metrics = m
	o.proxy = health.NewProxy(health.ProxyConfig{Waiting: r.loop.Liveness().Late, Applied: r.loop.Liveness().Applied, Serving: r.data.Attached, Proven: o.notProven, Answered: m.Answered})
	o.checks = health.NewServices(health.ServicesConfig{Healthy: o.proxy.Healthy, Log: r.cfg.Log, Holder: health.Holder})
	server := func(name, addr string, handler http.Handler) {
		o.servers = append(o.servers, health.NewServer(health.ServerConfig{Name: name, Addr: addr, Handler: handler, Log: r.cfg.Log, Holder: health.Holder}))
	}
	if r.cfg.HealthAddr != "" {
		server("/healthz and /livez", r.cfg.HealthAddr, o.proxy.Handler())
	}
	port := o.metricsPort()
	for _, addr := range r.cfg.MetricsAddrs {
		server("/metrics", addr, port)
	}
	if r.cfg.NodeStatus {
		o.node = nodestatus.New(nodestatus.Config{NodeName: r.cfg.NodeName, Client: r.clients.Core, Log: r.cfg.Log})
	}
	return o
}

// serve listens until ctx ends. What can't be listened on is tried again and again.
func (o *reporter) serve(ctx context.Context) {
	var group sync.WaitGroup
	for _, s := range o.servers {
		group.Go(func() { s.Run(ctx) })
	}
	if o.node != nil {
		group.Go(func() { o.node.Run(ctx) })
	}
	group.Go(func() { o.proveAgain(ctx) })
	<-ctx.Done()
	o.checks.Close()
	group.Wait()
}

// metricsPort answers what is asked for at the metrics port: what kube-proxy has there (serveMetrics in
// k8s.io/kubernetes/cmd/kube-proxy/app), but for /configz, /flagz, /statusz and profiles, which are about kube-proxy's own
// configuration and code.
func (o *reporter) metricsPort() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", o.metrics)
	mux.HandleFunc("/proxyMode", health.ServeProxyMode)
	o.proxy.Register(mux)
	return mux
}

// proveAgain proves, again and again, that connections are served, and says so on the Node and to systemd.
func (o *reporter) proveAgain(ctx context.Context) {
	tick := time.NewTicker(firstProofInterval)
	defer tick.Stop()
	notified, tried, seen := "", false, newSteady()
	for {
		addrs := o.run.loop.APIAddrs()
		err := o.run.data.Prove(ctx, addrs)
		if ctx.Err() != nil {
			return
		}
		// Before the first write it may not be known yet what to prove, or not be in the table.
		written := !o.run.loop.Liveness().Applied().IsZero()
		if len(addrs) > 0 && (written || !errors.Is(err, dataplane.ErrNoAPIService)) {
			o.note(err)
			if !tried {
				tried = true
				tick.Reset(proofInterval)
			}
		}
		rep := o.report()
		if text := seen.take(time.Now(), apiServersSeen(o.run.monitor.Status())); text != "" {
			rep.Message += query.APIServersMark + text
		}
		if o.node != nil {
			o.node.Set(rep)
		}
		if rep.Message != notified { // what `systemctl status` says
			notified = rep.Message
			o.run.cfg.Notify("STATUS=" + strings.ReplaceAll(notified, "\n", "; "))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (o *reporter) note(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil && (o.proof == nil || !o.proven) {
		o.run.cfg.Log.Warn("not proven", "err", err)
	}
	if err == nil && o.proven && o.proof != nil {
		o.run.cfg.Log.Info("proven again")
	}
	o.proof, o.proven = err, true
	o.fails++
	if err == nil {
		o.fails, o.at = 0, time.Now()
	}
}

func (o *reporter) lastProof() admin.Proof {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := admin.Proof{Proven: o.at}
	if o.proof != nil {
		p.Error = o.proof.Error()
	}
	return p
}

// provenNow reports whether the last proof succeeded, or is yet to come.
func (o *reporter) provenNow() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.proof == nil
}

// errNoProof is why nothing is proven before the first proof.
var errNoProof = errors.New("no connection was tried yet")

// notProven is why it is not proven that connections are served; nil: it is, or not enough proofs failed in a row.
func (o *reporter) notProven() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.at.IsZero() && o.proof == nil:
		return errNoProof
	case o.at.IsZero() || o.fails >= failsUntilFallback:
		return o.proof
	}
	return nil
}

// trouble is what is wrong with what the dataplane depends on, nil: nothing.
func (r *run) trouble() error { return errors.Join(r.data.Fault(), r.instance.lost()) }

// report is what the Node says: the label follows the proof, the condition also asks whether the table is whole.
func (o *reporter) report() nodestatus.Report {
	o.mu.Lock()
	n := node{proof: o.proof, fails: o.fails}
	o.mu.Unlock()
	n.attached, n.fault = o.run.data.Attached(), o.run.trouble()
	n.written, n.full = !o.run.loop.Liveness().Applied().IsZero(), o.run.writer.Full()
	return n.report()
}

// node is what a report depends on.
type node struct {
	proof         error // the last one's; nil: it succeeded
	fails         int   // proofs that failed, in a row
	attached      error // why it is not, or cannot be looked at
	fault         error // what the guard could not repair
	written, full bool
}

// report says fallback only after several proofs: a single look may have failed, or met what the guard repairs at once.
func (n node) report() nodestatus.Report {
	not := func(mode nodestatus.Mode, reason, message string) nodestatus.Report {
		return nodestatus.Report{Mode: mode, Ready: corev1.ConditionFalse, Reason: reason, Message: message}
	}
	mode := nodestatus.Active
	if n.fails >= failsUntilFallback {
		mode = nodestatus.Fallback
	}
	switch {
	case n.attached != nil:
		return not(mode, "NotAttached", n.attached.Error())
	case mode == nodestatus.Fallback:
		return not(mode, "ProofFailed", n.proof.Error())
	case !n.written:
		return not(mode, "WaitingForServices", "the API service is served; other Services are not all known yet")
	case n.full:
		return not(mode, "TableFull", "some Services have no room in the table: `firsthop status` names them")
	case n.fault != nil:
		return not(mode, "DataplaneDamaged", "every Service is served at connect time, but "+n.fault.Error())
	}
	return nodestatus.Report{Mode: mode, Ready: corev1.ConditionTrue, Reason: "Serving", Message: "every Service is served at connect time"}
}
