package standin

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Object is one of the API's, as JSON has it.
type Object = map[string]any

// kinds are the resources that Objects lists, and what their objects are.
var kinds = map[string]struct{ version, kind string }{
	"services":       {"v1", "Service"},
	"nodes":          {"v1", "Node"},
	"pods":           {"v1", "Pod"},
	"endpointslices": {"discovery.k8s.io/v1", "EndpointSlice"},
}

// Objects are what API servers list and watch, in JSON, whatever their clients may see and select by: who runs
// alone on its node. Several API servers may share them, as they share an etcd.
type Objects struct {
	mu      sync.Mutex
	version int64
	now     map[string]map[string]Object // by resource, then "namespace/name"
	past    []change
	changed chan struct{} // closed when past has grown
}

// change is what a watch tells of.
type change struct {
	version  int64
	resource string
	event    Object
}

// NewObjects returns none.
func NewObjects() *Objects {
	return &Objects{now: map[string]map[string]Object{}, changed: make(chan struct{})}
}

// Put adds or replaces an object, which has name, and in most cases namespace, in its metadata.
func (o *Objects) Put(resource string, object Object) {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := kinds[resource]
	o.version++
	object = maps.Clone(object)
	meta := maps.Clone(object["metadata"].(Object))
	meta["resourceVersion"] = strconv.FormatInt(o.version, 10)
	object["metadata"], object["kind"], object["apiVersion"] = meta, k.kind, k.version
	namespace, _ := meta["namespace"].(string)
	key, what := namespace+"/"+meta["name"].(string), "ADDED"
	if o.now[resource] == nil {
		o.now[resource] = map[string]Object{}
	}
	if o.now[resource][key] != nil {
		what = "MODIFIED"
	}
	o.now[resource][key] = object
	o.past = append(o.past, change{o.version, resource, Object{"type": what, "object": object}})
	close(o.changed)
	o.changed = make(chan struct{})
}

// serve answers a request for a list, an object or a watch, and tells whether it was one.
func (o *Objects) serve(w http.ResponseWriter, r *http.Request) bool {
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	at := slices.IndexFunc(path, func(element string) bool { return kinds[element].kind != "" })
	if at < 0 || r.Method != http.MethodGet {
		return false
	}
	q := r.URL.Query()
	switch resource := path[at]; {
	case len(path) > at+1:
		o.get(w, resource, strings.Join(path[at+1:], "/"), path[:at])
	case q.Get("watch") != "":
		o.watch(w, r, resource)
	default:
		o.list(w, resource)
	}
	return true
}

func (o *Objects) get(w http.ResponseWriter, resource, name string, before []string) {
	namespace := ""
	if i := slices.Index(before, "namespaces"); i >= 0 && i+1 < len(before) {
		namespace = before[i+1]
	}
	o.mu.Lock()
	object := o.now[resource][namespace+"/"+name]
	o.mu.Unlock()
	if object == nil {
		status(w, http.StatusNotFound, "NotFound", resource+" \""+name+"\" not found")
		return
	}
	writeJSON(w, http.StatusOK, object)
}

func (o *Objects) list(w http.ResponseWriter, resource string) {
	o.mu.Lock()
	items, version := o.items(resource), o.version
	o.mu.Unlock()
	writeJSON(w, http.StatusOK, Object{
		"kind": kinds[resource].kind + "List", "apiVersion": kinds[resource].version,
		"metadata": Object{"resourceVersion": strconv.FormatInt(version, 10)}, "items": items,
	})
}

// items are the objects of a resource, by name.
func (o *Objects) items(resource string) []Object {
	items := []Object{}
	for _, key := range slices.Sorted(maps.Keys(o.now[resource])) {
		items = append(items, o.now[resource][key])
	}
	return items
}

// watch tells of changes from a version on, or of all objects, a bookmark and then the changes (KEP-3157).
func (o *Objects) watch(w http.ResponseWriter, r *http.Request, resource string) {
	w.Header().Set("Content-Type", "application/json")
	out, flush := json.NewEncoder(w), http.NewResponseController(w).Flush
	from, _ := strconv.ParseInt(r.URL.Query().Get("resourceVersion"), 10, 64)
	var events []Object
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		o.mu.Lock()
		for _, object := range o.items(resource) {
			events = append(events, Object{"type": "ADDED", "object": object})
		}
		from = o.version
		o.mu.Unlock()
		events = append(events, Object{"type": "BOOKMARK", "object": Object{
			"kind": kinds[resource].kind, "apiVersion": kinds[resource].version,
			"metadata": Object{
				"resourceVersion": strconv.FormatInt(from, 10),
				"annotations":     Object{"k8s.io/initial-events-end": "true"},
			},
		}})
	}
	for {
		o.mu.Lock()
		for _, c := range o.past {
			if c.version > from && c.resource == resource {
				events = append(events, c.event)
			}
		}
		from = o.version
		changed := o.changed
		o.mu.Unlock()
		for _, e := range events {
			if out.Encode(e) != nil {
				return
			}
		}
		events = nil
		if flush() != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}
