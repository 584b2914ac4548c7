package nodestatus

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/firsthop/firsthop/runtime/watch"
	"github.com/firsthop/firsthop/test/lab"
)

// patience is how long anything may take on a machine that is busy with other tests.
const patience = time.Minute

// api is an API server that knows one Node, and patches it as the real one does.
type api struct {
	t *testing.T
	*httptest.Server

	mu       sync.Mutex
	node     corev1.Node
	fails    int // with this code; 0: it doesn't
	requests []string
	at       []time.Time
}

func newAPI(t *testing.T) *api {
	a := &api{t: t, node: corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"other": "x"}},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
	}}
	t.Cleanup(func() { // after all Reporters
		stacks := make([]byte, 1<<20)
		if s := string(stacks[:runtime.Stack(stacks, true)]); strings.Contains(s, "nodestatus.(*Reporter)") {
			t.Error(s)
		}
	})
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = append(a.requests, r.Method+" "+r.URL.Path)
	a.at = append(a.at, time.Now())
	fail := func(code int, reason metav1.StatusReason) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: reason, Code: int32(code)})
	}
	switch {
	case a.fails == 403:
		fail(403, metav1.StatusReasonForbidden)
		return
	case a.fails != 0:
		fail(a.fails, metav1.StatusReasonInternalError)
		return
	case r.Method == "GET" && r.URL.Path == "/api/v1/nodes/n1":
	case r.Method == "PATCH" && r.URL.Path == "/api/v1/nodes/n1/status" && r.Header.Get("Content-Type") == "application/strategic-merge-patch+json":
		var change corev1.Node
		decoder := json.NewDecoder(r.Body)
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&change); err != nil {
			a.t.Error(err)
		}
		a.merge(&change)
	default:
		fail(404, metav1.StatusReasonNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a.node)
}

// merge merges labels by their keys and conditions by their type. Patches of anything else are wrong.
func (a *api) merge(change *corev1.Node) {
	for k, v := range change.Labels {
		if a.node.Labels == nil {
			a.node.Labels = map[string]string{}
		}
		a.node.Labels[k] = v
	}
	for _, c := range change.Status.Conditions {
		i := slices.IndexFunc(a.node.Status.Conditions, func(o corev1.NodeCondition) bool { return o.Type == c.Type })
		if i < 0 {
			a.node.Status.Conditions = append(a.node.Status.Conditions, c)
		} else {
			a.node.Status.Conditions[i] = c
		}
	}
	change.Labels, change.Status.Conditions = nil, nil
	if !reflect.DeepEqual(*change, corev1.Node{}) {
		a.t.Errorf("the patch changes more: %+v", change)
	}
}

func (a *api) fail(code int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fails = code
}

func (a *api) edit(edit func(*corev1.Node)) *corev1.Node {
	a.mu.Lock()
	defer a.mu.Unlock()
	edit(&a.node)
	return a.node.DeepCopy()
}

// says is what the Node says now.
func (a *api) says() *said {
	a.mu.Lock()
	defer a.mu.Unlock()
	return read(&a.node)
}

func (a *api) asked() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.requests...)
}

// newReporter runs one, with the runtime's own client, until the test ends.
func newReporter(t *testing.T, a *api, change func(*Config)) (*Reporter, *lab.Log) {
	t.Helper()
	clients, err := watch.NewClients(&rest.Config{Host: a.URL})
	if err != nil {
		t.Fatal(err)
	}
	l := &lab.Log{}
	cfg := Config{NodeName: "n1", Client: clients.Core, Log: slog.New(slog.NewTextHandler(l, nil)), Pause: time.Millisecond, FirstRetry: time.Millisecond, LongestRetry: 5 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	r := New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return r, l
}
