package watch

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/test/lab"
)

// fakeAPI is an API server with the Services of one list; its watches tell of nothing until they are ended.
type fakeAPI struct {
	t    *testing.T
	list *corev1.ServiceList
	json bool
	cut  int // how many lists end too early

	mu     sync.Mutex
	asked  []string // "list", "watch from RV" or "watch-list", of Services
	wanted url.Values
	end    chan struct{} // closed: watches end
}

func (a *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/api/v1/services" {
		http.NotFound(w, r)
		return
	}
	q := r.URL.Query()
	what := "list"
	if q.Get("resourceVersion") == "0" {
		what = "list of any age"
	}
	if q.Get("watch") != "" {
		what = "watch from " + q.Get("resourceVersion")
		if q.Get("sendInitialEvents") == "true" {
			what = "watch-list"
		}
	}
	a.mu.Lock()
	a.asked, a.wanted = append(a.asked, what), q
	end := a.end
	cut := a.cut > 0 && what == "list"
	if cut {
		a.cut--
	}
	a.mu.Unlock()
	switch {
	case what == "list" && a.json:
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"kind":"ServiceList","apiVersion":"v1"}`)
	case cut:
		w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf")
		list := encode(a.t, "ServiceList", a.list)
		_, _ = w.Write(list[:len(list)/2])
	case what == "list", what == "list of any age":
		w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf")
		_, _ = w.Write(encode(a.t, "ServiceList", a.list))
	case what == "watch-list":
		http.Error(w, "no", http.StatusTooManyRequests)
	default:
		w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf;stream=watch")
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		select {
		case <-end:
		case <-r.Context().Done():
		}
	}
}

func (a *fakeAPI) requests() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.asked)
}

// follow runs a Watcher of the Services until the test ends, and gives what it tells of as it comes.
func (a *fakeAPI) follow() <-chan Event {
	srv := httptest.NewServer(a)
	a.end = make(chan struct{})
	clients, err := NewClients(&rest.Config{Host: srv.URL})
	if err != nil {
		a.t.Fatal(err)
	}
	events := make(chan Event, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	w := New(Config{
		Clients: clients, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Stripper: &services.Stripper{},
		Handle: func(list []Event) {
			for _, ev := range list {
				select {
				case events <- ev:
				case <-ctx.Done():
				}
			}
		},
	})
	done := make(chan struct{})
	go func() { w.follow(ctx, w.sources()[0]); close(done) }()
	a.t.Cleanup(func() { cancel(); <-done; srv.Close() })
	return events
}

func withAPI(l *corev1.ServiceList) *corev1.ServiceList {
	l.Items = append(l.Items, fullService("kubernetes"))
	return l
}

// The first time by a list, as an API server is fastest with it, and later by a watch-list, which costs it least.
func TestLookAsksForAListFirst(t *testing.T) {
	api := &fakeAPI{t: t, list: withAPI(someList(2*lookBatch + 1))}
	events := api.follow()
	names := map[string]bool{}
	for ev := range events {
		if ev.Synced {
			break
		}
		names[ev.Name.Name] = true
	}
	if len(names) != 2*lookBatch+2 {
		t.Errorf("%d Services, want %d", len(names), 2*lookBatch+2)
	}
	lab.Await(t, "a watch from where the list was made", func() bool { return slices.Equal(api.requests(), []string{"list", "watch from 42"}) })
	if got := api.wanted.Get("labelSelector"); got != "" {
		t.Errorf("watches %q", got)
	}
	api.mu.Lock()
	close(api.end)
	api.mu.Unlock()
	lab.Await(t, "a watch-list after the watch", func() bool { return slices.Contains(api.requests(), "watch-list") })
	for _, what := range api.requests()[1:] {
		if what == "list" {
			t.Errorf("asked %v", api.requests())
		}
	}
	select {
	case ev := <-events: // the reflector's own list has nothing of what was told
		t.Errorf("told %+v", ev)
	default:
	}
}

func TestLookFallsBackToAWatchList(t *testing.T) {
	api := &fakeAPI{t: t, json: true}
	api.follow()
	lab.Await(t, "a watch-list", func() bool { return slices.Contains(api.requests(), "watch-list") })
}

// What was told of a list that broke off, or was not believed, goes with the next one.
func TestLookForgetsABrokenList(t *testing.T) {
	for name, broken := range map[string]error{"breaks off": io.ErrUnexpectedEOF, "lacks the API service": nil} {
		s, got := newSink(Services)
		objects := func(n int, api bool, err error) func(func(object) error) (string, error) {
			return func(each func(object) error) (string, error) {
				for i := range n {
					svc := fullService(string(rune('a'+i/26)) + string(rune('a'+i%26)))
					if err := each(&svc); err != nil {
						return "", err
					}
				}
				if svc := fullService("kubernetes"); api {
					_ = each(&svc)
				}
				return "1", err
			}
		}
		if _, err := s.look(objects(lookBatch+1, false, broken)); err == nil || broken == nil && !errors.Is(err, errBadList) {
			t.Fatalf("one that %s: %v", name, err)
		}
		if len(*got) != lookBatch || s.whole {
			t.Fatalf("one that %s: told %d events, whole %v", name, len(*got), s.whole)
		}
		*got = nil
		if _, err := s.look(objects(3, true, nil)); err != nil {
			t.Fatal(err)
		}
		gone := 0
		for _, ev := range *got {
			if ev.Object == nil && !ev.Synced {
				gone++
			}
		}
		if last := (*got)[len(*got)-1]; !last.Synced || gone < lookBatch-3 {
			t.Errorf("after one that %s: %d are gone, then %+v", name, gone, last)
		}
		if want := (types.NamespacedName{Namespace: metav1.NamespaceDefault, Name: "aa"}); !s.known[want] || len(s.known) != 4 {
			t.Errorf("knows %v", s.known)
		}
	}
}

// client-go would fall back to the list that costs the API server least, of whatever age.
func TestLookTakesNoOldListAfterACutOne(t *testing.T) {
	a := &fakeAPI{t: t, list: withAPI(someList(30)), cut: 2}
	events := a.follow()
	for ev := range events {
		if ev.Synced {
			break
		}
	}
	if asked := a.requests(); slices.Contains(asked, "list of any age") || asked[0] != "list" || asked[1] != "list" {
		t.Errorf("asked for %q", asked)
	}
}
