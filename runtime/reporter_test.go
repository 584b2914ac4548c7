package runtime

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/runtime/health"
	"github.com/firsthop/firsthop/runtime/metrics"
	"github.com/firsthop/firsthop/runtime/nodestatus"
)

func TestNodeReport(t *testing.T) {
	gone, failed := errors.New("connect4 is not attached"), errors.New("connection refused")
	for name, tc := range map[string]struct {
		node   node
		mode   nodestatus.Mode
		reason string
	}{
		"all is well":                                 {node{written: true}, nodestatus.Active, "Serving"},
		"not attached at one look":                    {node{written: true, attached: gone}, nodestatus.Active, "NotAttached"},
		"not attached, and one proof failed":          {node{written: true, attached: gone, proof: failed, fails: 1}, nodestatus.Active, "NotAttached"},
		"not attached, and proofs fail":               {node{written: true, attached: gone, proof: failed, fails: failsUntilFallback}, nodestatus.Fallback, "NotAttached"},
		"attached, and one proof failed":              {node{written: true, proof: failed, fails: 1}, nodestatus.Active, "Serving"},
		"attached, and proofs fail":                   {node{written: true, proof: failed, fails: failsUntilFallback}, nodestatus.Fallback, "ProofFailed"},
		"nothing written yet":                         {node{}, nodestatus.Active, "WaitingForServices"},
		"a full table":                                {node{written: true, full: true}, nodestatus.Active, "TableFull"},
		"damage that does not touch traffic":          {node{written: true, fault: gone}, nodestatus.Active, "DataplaneDamaged"},
		"proofs that fail say more than a full table": {node{written: true, full: true, proof: failed, fails: 9}, nodestatus.Fallback, "ProofFailed"},
	} {
		t.Run(name, func(t *testing.T) {
			got := tc.node.report()
			if got.Mode != tc.mode || got.Reason != tc.reason || (got.Ready == corev1.ConditionTrue) != (tc.reason == "Serving") {
				t.Errorf("%+v, want %v, %s", got, tc.mode, tc.reason)
			}
		})
	}
}

func TestReporterNotProven(t *testing.T) {
	failed, now := errors.New("connection refused"), time.Now()
	for name, tc := range map[string]struct {
		o    *reporter
		want error
	}{
		"before the first proof":       {&reporter{}, errNoProof},
		"the first one failed":         {&reporter{proof: failed, fails: 1}, failed},
		"it succeeded":                 {&reporter{at: now}, nil},
		"one failed since":             {&reporter{at: now, proof: failed, fails: 1}, nil},
		"as many failed as say enough": {&reporter{at: now, proof: failed, fails: failsUntilFallback}, failed},
	} {
		if got := tc.o.notProven(); !errors.Is(got, tc.want) {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
	}
}

// What kube-proxy's tools and Kubernetes' e2e suite ask for at the metrics port: "should check kube-proxy urls" wants
// 200 from /proxyMode.
func TestReporterMetricsPort(t *testing.T) {
	never := func() time.Time { return time.Time{} }
	o := &reporter{metrics: metrics.New(metrics.Config{}), proxy: health.NewProxy(health.ProxyConfig{Waiting: never, Applied: never})}
	server := httptest.NewServer(o.metricsPort())
	defer server.Close()
	for path, want := range map[string]string{
		"/proxyMode": "firsthop", "/metrics": "kubeproxy_sync_proxy_rules_duration_seconds", "/healthz": "lastUpdated", "/livez": "lastUpdated", "/configz": "404",
	} {
		resp, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		switch {
		case err != nil || !strings.Contains(string(body), want):
			t.Errorf("%s answers %q, want %s (%v)", path, body, want, err)
		case (resp.StatusCode == http.StatusOK) != (want != "404"):
			t.Errorf("%s answers with code %d", path, resp.StatusCode)
		case path == "/proxyMode" && (string(body) != want || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain")):
			t.Errorf("%s answers %q as %s: it is compared as a whole", path, body, resp.Header.Get("Content-Type"))
		}
	}
}
