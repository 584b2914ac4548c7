package metrics

import (
	"compress/gzip"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/apihealth"
	"github.com/firsthop/firsthop/runtime/health"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/sockets"
	"github.com/firsthop/firsthop/runtime/uplinks"
	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/runtime/writer"
)

// Config says what a page is made of. What is nil is left out. All functions are called once for each page, one page at a
// time, by any goroutine.
type Config struct {
	Version string // of this program
	Log     *slog.Logger

	Table      func() writer.Status
	Watches    func() map[watch.Resource]watch.Status
	APIServers func() apihealth.Status
	Dialer     func() apihealth.DialerStatus
	Unserved   func() []health.Unserved // healthCheckNodePorts
	Problems   func() map[services.Reason]int
	// NoLocal is how many Service ports have no local endpoint where a Local policy wants one.
	NoLocal func() (internal, external int)
	Sockets func() sockets.Status
	// PacketPath is nil where it is off, as is what it returns before it is on.
	PacketPath func() *uplinks.Status

	// SocketMaps are the maps in which programs remember sockets, clients and pods (bpf.Maps.Usage).
	SocketMaps func() ([]bpf.MapUsage, error)

	// Counters are those of the kernel. See ReadCounters.
	Counters CounterReader
	// Indexes are the service indexes of Services (writer.Writer.Indexes).
	Indexes func() map[uint32]services.PortKey
	// PerService makes two counters for each Service, port and family. See the package's comment.
	PerService bool
}

// Metrics counts what the runtime does. Its methods may be called by any goroutine, and don't block.
type Metrics struct {
	cfg     Config
	started time.Time

	mu            sync.Mutex
	flushes       histogram // kubeproxy_sync_proxy_rules_duration_seconds
	applied       histogram
	programming   histogram
	flushErrors   int
	lastFlush     time.Time
	lastQueued    time.Time
	serviceEvents changes
	sliceEvents   changes
	answers       map[answer]int
	causes        causes

	page    sync.Mutex // one at a time
	size    int        // of the last one
	traffic traffic
}

// changes are objects that changed; pending are those that wait for the next write.
type changes struct{ total, pending int }

func (c *changes) add() {
	c.total++
	c.pending++
}

// answer is one of /healthz or /livez.
type answer struct {
	path string
	code int
}

// New makes Metrics.
func New(cfg Config) *Metrics {
	now := time.Now()
	return &Metrics{
		cfg: cfg, started: now,
		flushes:     newHistogram(exponential(0.001, 2, 15)),
		applied:     newHistogram(exponential(0.0005, 2, 16)),
		programming: newHistogram(slices.Concat(linear(0.25, 0.25, 2), linear(1, 1, 59), linear(60, 5, 12), linear(120, 30, 7))),
		answers:     map[answer]int{},
		causes:      newCauses(now),
	}
}

// ServiceChanged counts a Service that came, changed or went.
func (m *Metrics) ServiceChanged() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.serviceEvents.add()
}

// SliceChanged counts an EndpointSlice that came, changed or went: the Service that it belongs to, and when its cause was
// (Trigger; zero: not known, or it went).
func (m *Metrics) SliceChanged(service types.NamespacedName, cause time.Time, gone bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sliceEvents.add()
	m.causes.note(service, cause, gone)
}

// Queued says that something waits to be written.
func (m *Metrics) Queued(at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lastQueued = at
}

// BeginFlush says that all that has changed so far is being written. The returned function says how it went: with nil it
// is in the table now. queued is since when the oldest of it was waiting, zero if nothing was.
func (m *Metrics) BeginFlush(queued time.Time) (done func(err error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	began, svcs, slcs, caused := time.Now(), m.serviceEvents.pending, m.sliceEvents.pending, m.causes.take()
	m.serviceEvents.pending, m.sliceEvents.pending = 0, 0
	return func(err error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		now := time.Now()
		if err != nil {
			m.flushErrors++
			m.serviceEvents.pending += svcs
			m.sliceEvents.pending += slcs
			m.causes.putBack(caused)
			return
		}
		m.flushes.observe(now.Sub(began).Seconds())
		m.lastFlush = now
		if !queued.IsZero() {
			m.applied.observe(now.Sub(queued).Seconds())
		}
		for _, list := range caused {
			for _, at := range list {
				m.programming.observe(now.Sub(at).Seconds())
			}
		}
	}
}

// Answered counts an answer of /healthz or /livez; it fits health.ProxyConfig.
func (m *Metrics) Answered(path string, code int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answers[answer{path, code}]++
}

func unixSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

// Page makes the text that Prometheus gets.
func (m *Metrics) Page() []byte {
	m.page.Lock()
	defer m.page.Unlock()
	p := &Page{b: make([]byte, 0, m.size+m.size/8+1<<14)}
	m.events(p)
	m.parts(p)
	m.noLocal(p)
	m.traffic.write(p, &m.cfg)
	writeProcess(p, m.started)
	m.size = len(p.b)
	return p.b
}

// events writes what was counted.
func (m *Metrics) events(p *Page) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kubeProxy(p)
	m.own(p)
}

// kubeProxy writes what kube-proxy has, too.
func (m *Metrics) kubeProxy(p *Page) {
	m.flushes.write(p, "kubeproxy_sync_proxy_rules_duration_seconds", "How long it took to write changes to the table.")
	p.Gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When changes were last written to the table, as a Unix time.", unixSeconds(m.lastFlush))
	p.Gauge("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "When a change was last found to be written, as a Unix time.", unixSeconds(m.lastQueued))
	m.programming.write(p, "kubeproxy_network_programming_duration_seconds",
		"From the cause of a change of endpoints, as their EndpointSlice has it, to the table. Clocks of two machines.")
	p.Counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices.", float64(m.sliceEvents.total))
	p.Gauge("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "Changes of EndpointSlices that are not written yet.", float64(m.sliceEvents.pending))
	p.Counter("kubeproxy_sync_proxy_rules_service_changes_total", "Changes of Services.", float64(m.serviceEvents.total))
	p.Gauge("kubeproxy_sync_proxy_rules_service_changes_pending", "Changes of Services that are not written yet.", float64(m.serviceEvents.pending))
	for _, path := range []string{"healthz", "livez"} {
		p.Counters("kubeproxy_proxy_"+path+"_total", "Answers of /"+path+".", func(add func(float64, ...Label)) {
			for _, code := range []int{http.StatusOK, http.StatusServiceUnavailable} {
				add(float64(m.answers[answer{"/" + path, code}]), Label{"code", strconv.Itoa(code)})
			}
		})
	}
}

// noLocal writes what kube-proxy calls a total, though it is a gauge.
func (m *Metrics) noLocal(p *Page) {
	if m.cfg.NoLocal == nil {
		return
	}
	p.Gauges("kubeproxy_sync_proxy_rules_no_local_endpoints_total",
		"Service ports, by family, with a Local policy and with endpoints, none of them on this node.", func(add adder) {
			internal, external := m.cfg.NoLocal()
			add(float64(internal), Label{"traffic_policy", "internal"})
			add(float64(external), Label{"traffic_policy", "external"})
		})
}

// own writes what nobody else has.
func (m *Metrics) own(p *Page) {
	p.Gauges("firsthop_build_info", "The version of this program; the value is 1.", func(add func(float64, ...Label)) {
		add(1, Label{"version", m.cfg.Version}, Label{"goversion", runtime.Version()})
	})
	m.applied.write(p, "firsthop_apply_duration_seconds", "From the first news of a change on this node to the table.")
	p.Counter("firsthop_flush_errors_total", "Writes to the table that failed; they are tried again.", float64(m.flushErrors))
}

// ServeHTTP answers GET and HEAD.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "metrics are only read", http.StatusMethodNotAllowed)
		return
	}
	page := m.Page()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	if !acceptsGzip(r.Header.Get("Accept-Encoding")) {
		_, _ = w.Write(page) // who asked may have gone
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil { // there is such a level
		return
	}
	_, _ = z.Write(page)
	_ = z.Close()
}

func acceptsGzip(header string) bool {
	for part := range strings.SplitSeq(header, ",") {
		name, parameters, _ := strings.Cut(part, ";")
		if strings.TrimSpace(name) == "gzip" {
			q := strings.ReplaceAll(parameters, " ", "")
			return q != "q=0" && q != "q=0.0" && q != "q=0.00" && q != "q=0.000"
		}
	}
	return false
}
