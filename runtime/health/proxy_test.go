package health

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func ago(d time.Duration) time.Time { return start.Add(-d) }

func TestProxyReadyz(t *testing.T) {
	failed := errors.New("connection refused")
	for _, tc := range []struct {
		name             string
		waiting, applied time.Time
		proven, serving  error
		code             int
		reason           any
	}{
		{"nothing was applied yet", time.Time{}, time.Time{}, nil, nil, 503, ErrNoServices.Error()},
		{"applied and proven", time.Time{}, ago(1), nil, nil, 200, nil},
		{"not proven", time.Time{}, ago(1), failed, nil, 503, failed.Error()},
		{"not attached", time.Time{}, ago(1), nil, failed, 503, failed.Error()},
		{"a change waits for too long", ago(time.Hour), ago(time.Hour), nil, nil, 503, nil},
	} {
		p := NewProxy(ProxyConfig{
			Waiting: func() time.Time { return tc.waiting }, Applied: func() time.Time { return tc.applied }, Clock: func() time.Time { return start },
			Proven: func() error { return tc.proven }, Serving: func() error { return tc.serving },
		})
		server := httptest.NewServer(p.Handler())
		a := ask(t, server.URL+"/readyz")
		server.Close()
		if a.err != nil || a.code != tc.code || a.body["reason"] != tc.reason {
			t.Errorf("%s: %d %v (%v), want %d, %v", tc.name, a.code, a.body, a.err, tc.code, tc.reason)
		}
	}
}

func TestProxyLivezAndHealthz(t *testing.T) {
	stays := &corev1.Node{}
	deleted := &corev1.Node{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &metav1.Time{Time: start}}}
	tainted := func(key string) *corev1.Node {
		return &corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "other"}, {Key: key}}}}
	}
	for _, tc := range []struct {
		name             string
		waiting, applied time.Time
		nodes            []*corev1.Node
		livez, healthz   int
	}{
		{"nothing was ever to do", time.Time{}, time.Time{}, nil, 200, 200},
		{"the first changes wait, however long", ago(time.Hour), time.Time{}, nil, 200, 200},
		{"idle for a day", time.Time{}, ago(24 * time.Hour), nil, 200, 200},
		{"a change waits", ago(time.Minute - 1), ago(time.Hour), nil, 200, 200},
		{"a change waits for too long", ago(time.Minute), ago(time.Hour), nil, 503, 503},
		{"others were applied meanwhile, but not this one", ago(time.Minute), ago(time.Second), nil, 503, 503},
		{"the node stays", time.Time{}, ago(1), []*corev1.Node{stays}, 200, 200},
		{"the node is being deleted", time.Time{}, ago(1), []*corev1.Node{stays, deleted}, 200, 503},
		{"the node is deleted", time.Time{}, ago(1), []*corev1.Node{stays, nil}, 200, 503},
		{"the autoscaler is going to delete the node", time.Time{}, ago(1), []*corev1.Node{tainted(ToBeDeletedTaint)}, 200, 503},
		{"it has thought better of it", time.Time{}, ago(1), []*corev1.Node{tainted(ToBeDeletedTaint), stays}, 200, 200},
		{"another taint", time.Time{}, ago(1), []*corev1.Node{tainted("node.kubernetes.io/unreachable")}, 200, 200},
		{"late, on a node that goes", ago(time.Hour), ago(time.Hour), []*corev1.Node{deleted}, 503, 503},
	} {
		t.Run(tc.name, func(t *testing.T) {
			answered := map[string]int{}
			p := NewProxy(ProxyConfig{
				Waiting: func() time.Time { return tc.waiting }, Applied: func() time.Time { return tc.applied },
				Answered: func(path string, code int) { answered[path] = code }, Clock: func() time.Time { return start },
			})
			for _, n := range tc.nodes {
				p.SetNode(n)
			}
			server := httptest.NewServer(p.Handler())
			defer server.Close()
			for path, want := range map[string]int{"/livez": tc.livez, "/healthz": tc.healthz} {
				a := ask(t, server.URL+path)
				if a.err != nil || a.code != want {
					t.Fatalf("%s: %d, want %d (%v)", path, a.code, want, a.err)
				}
				if answered[path] != want {
					t.Errorf("%s: reported %d", path, answered[path])
				}
				updated := start
				if want != 200 {
					updated = tc.applied
				}
				body := map[string]any{"lastUpdated": updated.Format(time.RFC3339Nano), "currentTime": start.Format(time.RFC3339Nano), "healthy": tc.livez == 200}
				if path == "/healthz" {
					body["nodeEligible"] = p.NodeEligible()
				}
				if fmt.Sprint(a.body) != fmt.Sprint(body) {
					t.Errorf("%s: %v, want %v", path, a.body, body)
				}
				if a.header.Get("Content-Type") != "application/json" || a.header.Get("X-Content-Type-Options") != "nosniff" {
					t.Errorf("%s: %v", path, a.header)
				}
			}
			if p.Healthy() != (tc.livez == 200) {
				t.Error("healthCheckNodePorts get another answer")
			}
		})
	}
}

func TestProxyOtherPaths(t *testing.T) {
	p := NewProxy(ProxyConfig{Waiting: func() time.Time { return time.Time{} }, Applied: time.Now})
	w := httptest.NewRecorder()
	p.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("%d", w.Code)
	}
}

func TestProxyNodeChangesWhileAnswering(t *testing.T) {
	p := NewProxy(ProxyConfig{Waiting: func() time.Time { return time.Time{} }, Applied: time.Now})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				p.SetNode(&corev1.Node{})
				p.Handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/healthz", nil))
			}
		})
	}
	wg.Wait()
}

// TestProxyIsNotHealthyWhileNothingIsAttached, whatever was written.
func TestProxyIsNotHealthyWhileNothingIsAttached(t *testing.T) {
	var attached error
	p := NewProxy(ProxyConfig{Waiting: func() time.Time { return time.Time{} }, Applied: time.Now, Serving: func() error { return attached }})
	server := httptest.NewServer(p.Handler())
	defer server.Close()
	for _, tc := range []struct {
		err  error
		code int
	}{{nil, 200}, {errors.New("not attached to /c: connect4"), 503}, {nil, 200}} {
		attached = tc.err
		for _, path := range []string{"/livez", "/healthz"} {
			a := ask(t, server.URL+path)
			if a.err != nil || a.code != tc.code || a.body["healthy"] != (tc.code == 200) {
				t.Errorf("%s: %d, %v, %v", path, a.code, a.body, a.err)
			}
			if reason := a.body["reason"]; (tc.err == nil) != (reason == nil) || tc.err != nil && reason != tc.err.Error() {
				t.Errorf("%s: the reason is %v", path, reason)
			}
		}
		if p.Healthy() != (tc.code == 200) {
			t.Error("healthCheckNodePorts get another answer")
		}
	}
}
