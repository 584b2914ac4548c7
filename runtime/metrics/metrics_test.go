package metrics

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/runtime/apihealth"
	"github.com/firsthop/firsthop/runtime/health"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/runtime/writer"
)

var web = types.NamespacedName{Namespace: "default", Name: "web"}

func webPort(ipv6 bool) services.PortKey {
	return services.PortKey{Service: web, Name: "http", Proto: bpf.TCP, IPv6: ipv6}
}

// whole is a configuration in which everything has something to tell.
func whole() Config {
	return Config{
		Version: "v1.2.3",
		Table: func() writer.Status {
			return writer.Status{
				Adopted: true, Ports: 5, Frontends: 7, Backends: 11, Room: nat.Capacity{Frontends: 100, Backends: 200, SourceRanges: 300},
				Flushes: 13, Repairs: 17, Reloads: 19,
				Out: []writer.PortState{{Full: true}, {Full: true}, {Err: "makes no sense"}},
			}
		},
		Watches: func() map[watch.Resource]watch.Status {
			return map[watch.Resource]watch.Status{watch.Services: {Synced: true, Objects: 23}, watch.Nodes: {LastError: "forbidden"}}
		},
		APIServers: func() apihealth.Status {
			return apihealth.Status{
				Live: true, Set: apihealth.Set{V4: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6443")}},
				Endpoints: []apihealth.EndpointStatus{
					{Endpoint: apiserver.Endpoint{Addr: netip.MustParseAddrPort("192.0.2.1:6443")}, State: apiserver.Live, InUse: true, RTT: 5 * time.Millisecond},
					{Endpoint: apiserver.Endpoint{Addr: netip.MustParseAddrPort("192.0.2.2:6443")}, State: apiserver.Dead},
				},
				Counters: apihealth.Counters{Probes: 29, Failures: 31, Changes: 37, SaveErrors: 41},
			}
		},
		SocketMaps: func() ([]bpf.MapUsage, error) {
			return []bpf.MapUsage{
				{Map: bpf.MapUDPSockRevNat, Used: 101, Size: 103, Counted: true, Inserted: 107, Overflowed: 109},
				{Map: bpf.MapUDPRevNat, Used: 113, Size: 127, LRU: true},
			}, nil
		},
		Dialer:   func() apihealth.DialerStatus { return apihealth.DialerStatus{Configured: 43, Direct: 47, Failed: 53} },
		Unserved: func() []health.Unserved { return make([]health.Unserved, 2) },
		Problems: func() map[services.Reason]int { return map[services.Reason]int{services.BadAddress: 59} },
		Counters: func(each func(uint32, bpf.Counters)) error {
			each(0, bpf.Counters{Refused: 61})
			each(1024, bpf.Counters{Translated: 67, Refused: 71})
			return nil
		},
		Indexes: func() map[uint32]services.PortKey {
			return map[uint32]services.PortKey{1024: webPort(false), 1025: webPort(true)}
		},
		PerService: true,
		NoLocal:    func() (int, int) { return 79, 83 },
	}
}

func TestPage(t *testing.T) {
	m := New(whole())
	m.Answered("/healthz", 503)
	page := m.Page()
	f := parse(t, page)
	lint(t, page)
	service := []string{"namespace", "default", "service", "web", "port", "http", "protocol", "tcp", "ip_family"}
	for _, tc := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"firsthop_table_adopted", nil, 1},
		{"firsthop_table_service_ports", nil, 5},
		{"firsthop_table_service_ports_out", []string{"reason", "full"}, 2},
		{"firsthop_table_service_ports_out", []string{"reason", "invalid"}, 1},
		{"firsthop_table_entries", []string{"kind", "frontends"}, 7},
		{"firsthop_table_entries", []string{"kind", "backends"}, 11},
		{"firsthop_table_entries_limit", []string{"kind", "frontends"}, 100},
		{"firsthop_table_entries_limit", []string{"kind", "backends"}, 200},
		{"firsthop_table_entries_limit", []string{"kind", "source_ranges"}, 300},
		{"firsthop_socket_map_entries", []string{"map", "udp_sock_rev_nat"}, 101},
		{"firsthop_socket_map_entries_limit", []string{"map", "udp_sock_rev_nat"}, 103},
		{"firsthop_socket_map_inserts_total", []string{"map", "udp_sock_rev_nat"}, 107},
		{"firsthop_socket_map_overflows_total", []string{"map", "udp_sock_rev_nat"}, 109},
		{"firsthop_socket_map_entries", []string{"map", "udp_rev_nat"}, 113},
		{"firsthop_socket_map_entries_limit", []string{"map", "udp_rev_nat"}, 127},
		{"firsthop_table_flushes_total", nil, 13},
		{"firsthop_table_repairs_total", nil, 17},
		{"firsthop_table_reloads_total", nil, 19},
		{"firsthop_watch_synced", []string{"resource", "services"}, 1},
		{"firsthop_watch_synced", []string{"resource", "nodes"}, 0},
		{"firsthop_watch_failing", []string{"resource", "services"}, 0},
		{"firsthop_watch_failing", []string{"resource", "nodes"}, 1},
		{"firsthop_watch_objects", []string{"resource", "services"}, 23},
		{"firsthop_api_service_live", nil, 1},
		{"firsthop_api_service_backends", nil, 1},
		{"firsthop_api_server_live", []string{"address", "192.0.2.1:6443"}, 1},
		{"firsthop_api_server_live", []string{"address", "192.0.2.2:6443"}, 0},
		{"firsthop_api_server_in_use", []string{"address", "192.0.2.1:6443"}, 1},
		{"firsthop_api_server_rtt_seconds", []string{"address", "192.0.2.1:6443"}, 0.005},
		{"firsthop_api_probes_total", nil, 29},
		{"firsthop_api_probe_failures_total", nil, 31},
		{"firsthop_api_service_changes_total", nil, 37},
		{"firsthop_api_save_errors_total", nil, 41},
		{"firsthop_api_dials_total", []string{"way", "configured"}, 43},
		{"firsthop_api_dials_total", []string{"way", "direct"}, 47},
		{"firsthop_api_dials_total", []string{"way", "none"}, 53},
		{"firsthop_health_check_node_ports_unserved", nil, 2},
		{"firsthop_service_problems", []string{"reason", "BadAddress"}, 59},
		{"firsthop_unserved_port_refused_total", nil, 61},
		{"firsthop_translated_total", nil, 67},
		{"firsthop_refused_total", nil, 71},
		{"firsthop_service_translated_total", append(service, "IPv4"), 67},
		{"firsthop_service_refused_total", append(service, "IPv4"), 71},
		{"firsthop_service_refused_total", append(service, "IPv6"), 0},
		{"kubeproxy_sync_proxy_rules_no_local_endpoints_total", []string{"traffic_policy", "internal"}, 79},
		{"kubeproxy_sync_proxy_rules_no_local_endpoints_total", []string{"traffic_policy", "external"}, 83},
		{"kubeproxy_proxy_healthz_total", []string{"code", "503"}, 1},
		{"kubeproxy_proxy_healthz_total", []string{"code", "200"}, 0},
		{"kubeproxy_proxy_livez_total", []string{"code", "200"}, 0},
	} {
		if got := f.value(t, tc.name, tc.labels...); got != tc.want {
			t.Errorf("%s %q: %v, want %v", tc.name, tc.labels, got, tc.want)
		}
	}
	for _, name := range []string{"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds", "go_goroutines", "go_memstats_heap_alloc_bytes"} {
		if got := f.value(t, name); got <= 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestPageLeavesOutWhatIsNotThere(t *testing.T) {
	page := New(Config{}).Page()
	lint(t, page)
	for name := range parse(t, page) {
		for _, part := range []string{"firsthop_table", "firsthop_watch", "firsthop_api", "firsthop_service", "firsthop_translated"} {
			if strings.HasPrefix(name, part) {
				t.Errorf("%s is there", name)
			}
		}
	}
	cfg := whole()
	cfg.PerService = false
	for name := range parse(t, New(cfg).Page()) {
		if name == "firsthop_service_translated_total" || name == "firsthop_service_refused_total" {
			t.Errorf("nobody asked for %s", name)
		}
	}
}

func TestBeginFlush(t *testing.T) {
	m := New(Config{})
	now := time.Now()
	m.ServiceChanged()
	m.SliceChanged(web, now.Add(2*time.Millisecond), false) // clocks differ
	m.SliceChanged(web, now.Add(-time.Hour), false)         // before the start
	m.SliceChanged(types.NamespacedName{Name: "gone"}, now.Add(time.Second), false)
	m.SliceChanged(types.NamespacedName{Name: "gone"}, time.Time{}, true)
	m.Queued(now)
	done := m.BeginFlush(now)
	m.ServiceChanged() // while it is being written: it waits for the next
	f := parse(t, m.Page())
	if n := f.value(t, "kubeproxy_sync_proxy_rules_service_changes_pending"); n != 1 {
		t.Errorf("%v wait", n)
	}
	done(errors.New("no lock"))
	f = parse(t, m.Page())
	for name, want := range map[string]float64{
		"kubeproxy_sync_proxy_rules_service_changes_pending":       2,
		"kubeproxy_sync_proxy_rules_service_changes_total":         2,
		"kubeproxy_sync_proxy_rules_endpoint_changes_pending":      4,
		"kubeproxy_sync_proxy_rules_endpoint_changes_total":        4,
		"kubeproxy_sync_proxy_rules_last_timestamp_seconds":        0,
		"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds": unixSeconds(now),
		"firsthop_flush_errors_total":                              1,
	} {
		if got := f.value(t, name); got != want {
			t.Errorf("after a write that failed: %s is %v, want %v", name, got, want)
		}
	}
	m.BeginFlush(now)(nil)
	f = parse(t, m.Page())
	if n := f.value(t, "kubeproxy_sync_proxy_rules_endpoint_changes_pending"); n != 0 {
		t.Errorf("%v wait", n)
	}
	if at := f.value(t, "kubeproxy_sync_proxy_rules_last_timestamp_seconds"); at < unixSeconds(now) {
		t.Errorf("written at %v", at)
	}
	for _, name := range []string{"kubeproxy_sync_proxy_rules_duration_seconds", "kubeproxy_network_programming_duration_seconds", "firsthop_apply_duration_seconds"} {
		if n := f.metric(name).GetHistogram().GetSampleCount(); n != 1 {
			t.Errorf("%s counted %d", name, n)
		}
	}
}

// The bounds are those of kube-proxy 1.36: histograms of both can be added up while a cluster changes over.
func TestHistogramBounds(t *testing.T) {
	m := New(Config{})
	if b := m.flushes.bounds; len(b) != 15 || b[0] != 0.001 || b[14] < 16.383 || b[14] > 16.385 {
		t.Error(b)
	}
	if b := m.programming.bounds; len(b) != 80 || b[0] != 0.25 || b[1] != 0.5 || b[2] != 1 || b[60] != 59 || b[61] != 60 || b[72] != 115 || b[73] != 120 || b[79] != 300 || !slices.IsSorted(b) {
		t.Error(len(b), b)
	}
}

func TestServeHTTP(t *testing.T) {
	server := httptest.NewServer(New(whole()))
	defer server.Close()
	for _, tc := range []struct {
		name, method, accept string
		code                 int
		zipped               bool
	}{
		{"as Prometheus asks", "GET", "gzip", 200, true},
		{"as a browser asks", "GET", "br, gzip;q=0.9", 200, true},
		{"not zipped", "GET", "identity", 200, false},
		{"zipped is refused", "GET", "gzip;q=0", 200, false},
		{"nothing is written", "POST", "", 405, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tc.method, server.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Accept-Encoding", tc.accept)
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != tc.code || resp.Header.Get("Content-Encoding") == "gzip" != tc.zipped {
				t.Fatalf("%d, %v", resp.StatusCode, resp.Header)
			}
			if tc.code != 200 {
				return
			}
			var body io.Reader = resp.Body
			if tc.zipped {
				if body, err = gzip.NewReader(resp.Body); err != nil {
					t.Fatal(err)
				}
			}
			page, err := io.ReadAll(body)
			if err != nil {
				t.Fatal(err)
			}
			parse(t, page)
			if resp.Header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" {
				t.Error(resp.Header)
			}
		})
	}
}

func TestPageConcurrent(t *testing.T) {
	m := New(whole())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				m.ServiceChanged()
				m.SliceChanged(web, time.Now(), false)
				m.Answered("/livez", 200)
				m.Queued(time.Now())
				m.BeginFlush(time.Now())(nil)
				parse(t, m.Page())
			}
		})
	}
	wg.Wait()
}
