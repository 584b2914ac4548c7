package watch

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/rest"

	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/test/lab"
)

// fullNode is a Node as a kubelet keeps it.
func fullNode(name string, addrs ...string) *corev1.Node {
	managed := metav1.ManagedFieldsEntry{Manager: "kubelet", Operation: metav1.ManagedFieldsOperationUpdate, FieldsV1: metav1.NewFieldsV1(`{"f:status":{}}`)}
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: "u", ResourceVersion: "7", Labels: map[string]string{"kubernetes.io/hostname": name},
			Annotations: map[string]string{"a": "b"}, ManagedFields: []metav1.ManagedFieldsEntry{managed}},
		Spec: corev1.NodeSpec{PodCIDR: "10.244.1.0/24", ProviderID: "x://" + name},
	}
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Message: "kubelet is posting ready status"}}
	for i := range 50 { // what a kubelet reports at most
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{
			Names:     []string{fmt.Sprintf("registry.example/some/image-%d@sha256:%064d", i, i), fmt.Sprintf("registry.example/some/image-%d:v1.2.%d", i, i)},
			SizeBytes: int64(i),
		})
	}
	return n
}

// slimOf is what is wanted of a Node.
func slimOf(n *corev1.Node) corev1.Node {
	return corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, ResourceVersion: n.ResourceVersion},
		Status:     corev1.NodeStatus{Addresses: n.Status.Addresses},
	}
}

func TestSlimNodeHasNameAndAddresses(t *testing.T) {
	full := fullNode("node-b", "192.0.2.2", "fd00::2")
	data, err := full.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var got slimNode
	if err := got.Unmarshal(data); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(slimOf(full), got.Node); diff != "" {
		t.Error(diff)
	}
	full.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true", "a": "b"} // a bookmark
	if data, err = full.Marshal(); err != nil {
		t.Fatal(err)
	}
	got.Reset()
	if err := got.Unmarshal(data); err != nil || got.Annotations[metav1.InitialEventsAnnotationKey] != "true" || len(got.Annotations) != 1 {
		t.Errorf("annotations %v, %v", got.Annotations, err)
	}
	for n := range data {
		_ = new(slimNode).Unmarshal(data[:n]) // garbage is an error, or a part
	}
	list := &corev1.NodeList{ListMeta: metav1.ListMeta{ResourceVersion: "42"}, Items: []corev1.Node{*fullNode("a", "192.0.2.1"), *fullNode("b", "192.0.2.2")}}
	if data, err = list.Marshal(); err != nil {
		t.Fatal(err)
	}
	var slim slimNodeList
	if err := slim.Unmarshal(data); err != nil || slim.ResourceVersion != "42" || len(slim.Items) != 2 {
		t.Fatalf("%d nodes of version %q: %v", len(slim.Items), slim.ResourceVersion, err)
	}
	if diff := cmp.Diff(slimOf(&list.Items[1]), slim.DeepCopyObject().(*slimNodeList).Items[1].Node); diff != "" {
		t.Error(diff)
	}
}

// nodesAPI is an API server with nodes, whose watch sends what comes.
type nodesAPI struct {
	t       *testing.T
	json    bool
	forbid  atomic.Bool
	updates chan *corev1.Node
}

func (a *nodesAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if r.URL.Path != "/api/v1/nodes" || q.Get("fieldSelector") != "" {
		http.NotFound(w, r)
		return
	}
	if a.forbid.Load() {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"nodes is forbidden","reason":"Forbidden","code":403}`)
		return
	}
	list := &corev1.NodeList{ListMeta: metav1.ListMeta{ResourceVersion: "42"}, Items: []corev1.Node{*fullNode("node-a", "192.0.2.1"), *fullNode("node-b", "192.0.2.2")}}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NodeList"))
	switch {
	case q.Get("watch") != "" && q.Get("sendInitialEvents") == "true": // as before Kubernetes 1.32
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"no","reason":"Invalid","code":422}`)
	case q.Get("watch") == "" && a.json:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(list)
	case q.Get("watch") == "":
		w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf")
		_, _ = w.Write(encode(a.t, "NodeList", list))
	default:
		a.watch(w, r)
	}
}

func (a *nodesAPI) watch(w http.ResponseWriter, r *http.Request) {
	kind := "application/json"
	if !a.json {
		kind = "application/vnd.kubernetes.protobuf;stream=watch"
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case n := <-a.updates:
			n.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Node"))
			n.ResourceVersion = "43"
			if a.json {
				raw, _ := json.Marshal(n)
				_ = json.NewEncoder(w).Encode(metav1.WatchEvent{Type: "MODIFIED", Object: runtime.RawExtension{Raw: raw}})
			} else {
				ev := &metav1.WatchEvent{Type: "MODIFIED", Object: runtime.RawExtension{Raw: encode(a.t, "Node", n)}}
				if err := protobuf.NewRawSerializer(nil, nil).Encode(ev, protobuf.LengthDelimitedFramer.NewFrameWriter(w)); err != nil {
					a.t.Error(err)
				}
			}
			w.(http.Flusher).Flush()
		}
	}
}

// followNodes watches until the test ends, and gives what is reported of other nodes.
func (a *nodesAPI) followNodes() (*Watcher, <-chan Event, *buffer) {
	srv := httptest.NewServer(a)
	clients, err := NewClients(&rest.Config{Host: srv.URL})
	if err != nil {
		a.t.Fatal(err)
	}
	events, log := make(chan Event, 1000), &buffer{}
	w := New(Config{
		Clients: clients, NodeName: "node-a", Log: slog.New(slog.NewTextHandler(log, nil)), Stripper: &services.Stripper{},
		Handle: func(list []Event) {
			for _, ev := range list {
				if ev.Resource == OtherNodes {
					events <- ev
				}
			}
		},
	})
	done := make(chan struct{})
	go func() { defer close(done); w.Run(a.t.Context()) }()
	a.t.Cleanup(func() { <-done; srv.Close() })
	return w, events, log
}

func TestWatcherFollowsAllNodes(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		t.Run(fmt.Sprintf("JSON %v", asJSON), func(t *testing.T) {
			a := &nodesAPI{t: t, json: asJSON, updates: make(chan *corev1.Node)}
			w, events, _ := a.followNodes()
			var names []string
			for ev := range events {
				if ev.Synced {
					break
				}
				if asJSON && ev.Object.(*corev1.Node).Status.Addresses == nil || !asJSON && ev.Object.(*corev1.Node).Status.Images != nil {
					t.Errorf("%+v", ev.Object)
				}
				names = append(names, ev.Name.Name)
			}
			slices.Sort(names)
			if fmt.Sprint(slices.Compact(names)) != "[node-a node-b]" {
				t.Errorf("nodes %v", names)
			}
			full := fullNode("node-c", "192.0.2.3")
			a.updates <- full
			ev := <-events
			got, ok := ev.Object.(*corev1.Node)
			if !ok || ev.Name.Name != "node-c" || services.NodeIPs(got)[0].String() != "192.0.2.3" {
				t.Errorf("an update: %+v", ev)
			}
			if !asJSON && (len(got.Status.Images)+len(got.Status.Conditions)+len(got.Labels) != 0) {
				t.Errorf("all of it was decoded: %+v", got)
			}
			if st := w.Status()[OtherNodes]; !st.Synced || st.Objects != 3 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

func TestWatcherReportsThatNodesMayNotBeListed(t *testing.T) {
	a := &nodesAPI{t: t}
	a.forbid.Store(true)
	w, events, log := a.followNodes()
	if ev := <-events; !ev.Absent {
		t.Errorf("%+v", ev)
	}
	const want = "node ports are served at this node's addresses only"
	lab.Await(t, "the status says so", func() bool { return strings.Contains(w.Status()[OtherNodes].LastError, want) })
	if n := strings.Count(log.String(), want); n != 1 {
		t.Errorf("it is logged %d times", n)
	}
}

// BenchmarkSlimNode decodes a Node's status update; "whole" is what it would cost to decode all of it.
func BenchmarkSlimNode(b *testing.B) {
	data, err := fullNode("node-b", "192.0.2.2", "fd00::2").Marshal()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("slim", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := new(slimNode).Unmarshal(data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("whole", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := new(corev1.Node).Unmarshal(data); err != nil {
				b.Fatal(err)
			}
		}
	})
}
