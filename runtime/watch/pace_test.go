package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/test/lab"
)

// answers of an API server to requests for Services.
type answers struct {
	list, watch func(http.ResponseWriter)
	requests    atomic.Int32
}

func (a *answers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path != "/api/v1/services" {
		<-r.Context().Done()
		return
	}
	a.requests.Add(1)
	if r.URL.Query().Get("watch") != "" {
		a.watch(w)
	} else {
		a.list(w)
	}
}

func failing(code int, headers ...string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
		reason := map[int]string{410: "Expired", 429: "TooManyRequests", 500: "InternalError", 504: "Timeout", 403: "Forbidden", 503: "ServiceUnavailable"}[code]
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"no","reason":%q,"code":%d}`, reason, code)
	}
}

func saying(text string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { fmt.Fprint(w, text) }
}

const kubernetesJSON = `{"kind":"Service","apiVersion":"v1","metadata":{"namespace":"default","name":"kubernetes","resourceVersion":"7"}}`

var goodList = saying(`{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"5"},"items":[` + kubernetesJSON + `]}`)

func TestPaceBacksOffWhateverFails(t *testing.T) {
	const requests = 40
	for _, tc := range []struct {
		name        string
		list, watch func(http.ResponseWriter)
	}{
		{"410 for watches", goodList, failing(410)},
		{"410 for all", failing(410), failing(410)},
		{"410 within the watch", goodList, saying(`{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410}}`)},
		{"500 within the watch", goodList, saying(`{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"InternalError","code":500}}`)},
		{"429 without a time", goodList, failing(429)},
		{"429 with no time", goodList, failing(429, "Retry-After", "0")},
		{"500", goodList, failing(500)},
		{"504", goodList, failing(504)},
		{"403 for all", failing(403), failing(403)},
		{"an end at once", goodList, saying("")},
		{"an event and an end", goodList, saying(`{"type":"MODIFIED","object":` + kubernetesJSON + `}`)},
		{"no JSON", goodList, saying("{no")},
		{"an event of a type that is none", goodList, saying(`{"type":"OTHER","object":` + kubernetesJSON + `}`)},
		{"lists that are not believed", saying(`{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"5"},"items":[]}`), failing(410)},
		{"lists that are none", saying(`{"kind":"Pod","apiVersion":"v1"}`), failing(410)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api := &answers{list: tc.list, watch: tc.watch}
			server := httptest.NewServer(api)
			defer server.CloseClientConnections()
			clients, err := NewClients(&rest.Config{Host: server.URL})
			if err != nil {
				t.Fatal(err)
			}
			w := New(Config{Clients: clients, NodeName: "node-a", Stripper: &services.Stripper{}, Log: slog.New(slog.NewTextHandler(&buffer{}, nil)), Handle: func([]Event) {}})
			var mu sync.Mutex
			var waited time.Duration
			w.sleep = func(ctx context.Context, d time.Duration) {
				mu.Lock()
				waited += d
				mu.Unlock()
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); w.Run(ctx) }()
			lab.Await(t, "many requests", func() bool { return api.requests.Load() >= requests })
			mu.Lock()
			defer mu.Unlock()
			if least := requests * time.Second; waited < least {
				t.Errorf("%d requests in %v, at least %v is meant", requests, waited, least)
			}
			if !strings.Contains(tc.name, "an event and") { // each event is a good sign
				lab.Await(t, "status tells of the error", func() bool { return w.Status()[Services].LastError != "" })
			}
			cancel()
		})
	}
}

func TestPaceHonorsRetryAfter(t *testing.T) {
	p := newPaced(t.Context(), New(Config{Log: slog.New(slog.NewTextHandler(&buffer{}, nil))}), source{resource: Services}, nil)
	at := time.Now()
	p.now = func() time.Time { return at }
	for asked, want := range map[int]time.Duration{30: 30 * time.Second, 3600: longestAsked} {
		p.failed(apierrors.NewTooManyRequests("busy", asked))
		if got := p.next.Sub(at); got != want {
			t.Errorf("waits %v after Retry-After: %d, want %v", got, asked, want)
		}
	}
}

func TestPaceGrowsAndIsReset(t *testing.T) {
	p := newPaced(t.Context(), New(Config{Log: slog.New(slog.NewTextHandler(&buffer{}, nil))}), source{resource: Services}, nil)
	at := time.Now()
	p.now = func() time.Time { return at }
	pause := func() time.Duration { return p.next.Sub(at) }
	for range 20 {
		p.ended(time.Millisecond)
	}
	if got := pause(); got < longestPause || got > 10*time.Second {
		t.Errorf("waits %v in the end, want 8 to 10 s", got)
	}
	p.ended(2 * time.Second) // as with a balancer that cuts what is idle
	if got := pause(); got < firstPause || got > time.Second {
		t.Errorf("waits %v after a watch of two seconds", got)
	}
	p.ended(time.Millisecond)
	p.ended(settledWatch)
	if got := pause(); got > 0 {
		t.Errorf("waits %v after a watch that lasted", got)
	}
}

// An API server without watch-lists is asked for a list at once.
func TestPaceCostsAStartNothing(t *testing.T) {
	p := newPaced(t.Context(), New(Config{Log: slog.New(slog.NewTextHandler(&buffer{}, nil))}), source{resource: Services}, nil)
	p.sleep = func(_ context.Context, d time.Duration) { t.Errorf("waits %v", d) }
	p.wait()
	p.failed(apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("ListOptions").GroupKind(), "", nil)) // it knows no watch-lists
	p.wait()
}

// What the cluster's rules forbid, or an API server that asks for patience, is no better with another one.
func TestPaceReportsUselessServers(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want int
	}{
		"errors":    {apierrors.NewInternalError(errors.New("no")), 3},
		"no watch":  {nil, 3},
		"no rights": {apierrors.NewForbidden(corev1.Resource("services"), "", nil), 0},
		"no such":   {apierrors.NewNotFound(corev1.Resource("services"), ""), 0},
		"busy":      {apierrors.NewTooManyRequests("busy", 1), 0},
		"silence":   {context.DeadlineExceeded, uselessAfter + 2},
	} {
		told := 0
		w := New(Config{Log: slog.New(slog.NewTextHandler(&buffer{}, nil)), OnUseless: func() { told++ }})
		p := newPaced(t.Context(), w, source{resource: Services}, nil)
		for range uselessAfter + 2 {
			p.failed(tc.err)
		}
		if told != tc.want {
			t.Errorf("%s: told %d times, want %d", name, told, tc.want)
		}
	}
}
