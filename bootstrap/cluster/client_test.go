package cluster

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
)

func clientOf(t *testing.T, cfg *rest.Config) *client {
	t.Helper()
	c, err := newClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// An API server that is in trouble is asked again; one that says no is not.
func TestClientRepeats(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n := asked.Add(1); {
		case r.URL.Path == "/gone":
			http.Error(w, "no", http.StatusNotFound)
		case n == 1:
			http.Error(w, "busy", http.StatusServiceUnavailable)
		default:
			_, _ = w.Write([]byte(`{"gitVersion":"v1"}`))
		}
	}))
	defer server.Close()
	c := clientOf(t, &rest.Config{Host: server.URL})
	var version struct {
		GitVersion string `json:"gitVersion"`
	}
	if err := c.get(t.Context(), "/version", &version); err != nil || version.GitVersion != "v1" || asked.Load() != 2 {
		t.Errorf("%v after %d requests: %+v", err, asked.Load(), version)
	}
	asked.Store(0)
	if err := c.get(t.Context(), "/gone", nil); !apierrors.IsNotFound(err) || asked.Load() != 1 {
		t.Errorf("%v after %d requests", err, asked.Load())
	}
}

// A server that is another one will be so the next time.
func TestClientDoesNotRepeatWhatStays(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	var dials atomic.Int32
	cfg := &rest.Config{Host: server.URL}
	d := &net.Dialer{}
	cfg.Dial = d.DialContext
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return tripper(func(r *http.Request) (*http.Response, error) {
			dials.Add(1)
			return rt.RoundTrip(r)
		})
	})
	err := clientOf(t, cfg).get(t.Context(), "/version", nil)
	if err == nil || dials.Load() != 1 || !strings.Contains(err.Error(), "ask the API server at "+strings.TrimPrefix(server.URL, "https://")) {
		t.Errorf("%v after %d requests", err, dials.Load())
	}
}

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The client follows no redirect: its credentials would go along.
func TestClientFollowsNobody(t *testing.T) {
	var led atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { led.Add(1) }))
	defer other.Close()
	server := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer server.Close()
	if err := clientOf(t, &rest.Config{Host: server.URL, BearerToken: "secret"}).get(t.Context(), "/version", nil); err == nil || led.Load() != 0 {
		t.Errorf("%v; the other server was asked %d times", err, led.Load())
	}
}
