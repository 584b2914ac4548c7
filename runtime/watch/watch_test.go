package watch

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/test/lab"
)

// buffer is a log that several may write to.
type buffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// An API server before Kubernetes 1.33 knows no ServiceCIDR, and system:node-proxier may not see any before.
func TestWatcherWithoutServiceCIDRs(t *testing.T) {
	for _, code := range []int{http.StatusNotFound, http.StatusForbidden} {
		t.Run(http.StatusText(code), func(t *testing.T) {
			var cidrs, nodes atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/servicecidrs") {
					cidrs.Add(1)
				}
				if strings.Contains(r.URL.Path, "/nodes") {
					nodes.Add(1)
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(code)
				reason := strings.ReplaceAll(http.StatusText(code), " ", "")
				fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"no","reason":%q,"code":%d}`, reason, code)
			}))
			defer server.Close()
			clients, err := NewClients(&rest.Config{Host: server.URL})
			if err != nil {
				t.Fatal(err)
			}
			log := &buffer{}
			w := New(Config{
				Clients: clients, NodeName: "node-a", CIDRs: true, Stripper: &services.Stripper{},
				Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})), Handle: func([]Event) {},
			})
			done := make(chan struct{})
			go func() { defer close(done); w.Run(t.Context()) }()
			lab.Await(t, "all have been asked for", func() bool {
				return strings.Contains(log.String(), "resource=servicecidrs") && w.Status()[Nodes].LastError != "" && w.Status()[Services].LastError != ""
			})
			lab.Await(t, "what can't be done without is asked for again", func() bool { return nodes.Load() > 5 })
			if n := cidrs.Load(); n > 1 {
				t.Errorf("ServiceCIDRs were asked for %d times meanwhile", n)
			}
			if st, there := w.Status()[ServiceCIDRs]; there {
				t.Errorf("ServiceCIDRs are missed: %+v", st)
			}
			for line := range strings.Lines(log.String()) {
				if strings.Contains(line, "servicecidrs") && !strings.Contains(line, "level=DEBUG") {
					t.Error(line)
				}
			}
		})
	}
}
