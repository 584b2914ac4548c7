package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/firsthop/firsthop/runtime/services"
)

// Resource is what is watched.
type Resource string

// The resources.
const (
	Services       Resource = "services"
	EndpointSlices Resource = "endpointslices"
	Nodes          Resource = "nodes"       // this one
	OtherNodes     Resource = "other-nodes" // all of them, by name and addresses only
	Pods           Resource = "pods"
	ServiceCIDRs   Resource = "servicecidrs" // of Kubernetes 1.33 and later
)

// Event is an object that came or changed (Object), or went (Object is nil),
// or says that all objects of a resource have come (Synced), or that none will (Absent).
type Event struct {
	Resource Resource
	Name     types.NamespacedName
	Object   metav1.Object // *corev1.Service, *discoveryv1.EndpointSlice, *corev1.Node, *corev1.Pod or *networkingv1.ServiceCIDR, stripped
	Synced   bool
	Absent   bool // the API server doesn't have it, or doesn't let us see it
}

// Config is what a Watcher needs.
type Config struct {
	Clients  Clients
	NodeName string
	Log      *slog.Logger
	Pods     bool // watch the node's Pods too
	CIDRs    bool // watch the ServiceCIDRs too, where the API has them and lets
	Stripper *services.Stripper

	// Handle gets a list at once, or one change. It may be called by
	// several goroutines at once, for different resources.
	Handle func([]Event)
	// OnUseless is called when an API server repeatedly answers with nothing that can be
	// used, where another one may do better. nil: nobody is.
	OnUseless func()
}

// notHeadless leaves out the slices of another proxy's Services, and those that
// nobody balances. Services of another proxy are watched: their addresses must not be refused.
const notHeadless = "!" + services.LabelProxyName + ",!" + corev1.IsHeadlessService

// Watcher watches. Its methods may be called by any goroutine.
type Watcher struct {
	cfg   Config
	sleep func(context.Context, time.Duration)

	mu     sync.Mutex
	status map[Resource]Status
}

// Status is how the watch of one resource is doing.
type Status struct {
	Synced    bool      // a whole list has come
	Objects   int       // that are known
	LastError string    // since the last event; empty: none
	Since     time.Time // of that error
}

// New makes a Watcher.
func New(cfg Config) *Watcher {
	return &Watcher{cfg: cfg, sleep: sleep, status: map[Resource]Status{}}
}

// Run watches until ctx ends, through every failure of the API servers.
func (w *Watcher) Run(ctx context.Context) {
	var group sync.WaitGroup
	for _, s := range w.sources() {
		group.Go(func() { w.follow(ctx, s) })
	}
	group.Wait()
}

// source is one list and watch.
type source struct {
	resource Resource
	path     string // of the resource at the API server
	client   rest.Interface
	options  metav1.ListOptions
	list     func() runtime.Object
	object   func() object
	looked   bool // the first list is asked for by a list: see looking
	optional bool // not every API server has it, or lets everybody see it
	missed   bool // it is reported that it doesn't
}

func (w *Watcher) sources() []source {
	newServices := func() runtime.Object { return &corev1.ServiceList{} }
	newSlices := func() runtime.Object { return &discoveryv1.EndpointSliceList{} }
	newNodes := func() runtime.Object { return &corev1.NodeList{} }
	newSlimNodes := func() runtime.Object { return &slimNodeList{} }
	newPods := func() runtime.Object { return &corev1.PodList{} }
	newCIDRs := func() runtime.Object { return &networkingv1.ServiceCIDRList{} }
	c := w.cfg.Clients
	sources := []source{
		{Services, "services", c.Core, metav1.ListOptions{}, newServices, newObject[corev1.Service], true, false, false},
		{EndpointSlices, "endpointslices", c.Discovery, metav1.ListOptions{LabelSelector: notHeadless}, newSlices, newObject[discoveryv1.EndpointSlice], true, false, false},
		{Nodes, "nodes", c.Core, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", w.cfg.NodeName).String()}, newNodes, newObject[corev1.Node], false, false, false},
		{OtherNodes, "nodes", c.Nodes, metav1.ListOptions{}, newSlimNodes, newObject[slimNode], true, true, true},
	}
	if w.cfg.Pods {
		sources = append(sources, source{Pods, "pods", c.Core,
			metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", w.cfg.NodeName).String()}, newPods, newObject[corev1.Pod], false, false, false})
	}
	if w.cfg.CIDRs {
		sources = append(sources, source{ServiceCIDRs, "servicecidrs", c.Networking, metav1.ListOptions{}, newCIDRs, newObject[networkingv1.ServiceCIDR], false, true, false})
	}
	return sources
}

// newObject makes an object of one of Kubernetes' types.
func newObject[T any, P interface {
	*T
	object
}]() object {
	return P(new(T))
}

// listWatch is the source as client-go wants it.
func (s source) listWatch() cache.ListerWatcher {
	merge := func(o metav1.ListOptions) metav1.ListOptions {
		o.LabelSelector, o.FieldSelector = s.options.LabelSelector, s.options.FieldSelector
		return o
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o, list := merge(o), s.list()
			err := s.client.Get().Resource(s.path).VersionedParams(&o, metav1.ParameterCodec).MaxRetries(0).Do(ctx).Into(list)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o = merge(o)
			o.Watch = true
			return s.client.Get().Resource(s.path).VersionedParams(&o, metav1.ParameterCodec).MaxRetries(0).Watch(ctx)
		},
	}
}

// follow runs one reflector. When it asks again is paced's to say, whatever went
// wrong; client-go's own retries would come on top.
func (w *Watcher) follow(ctx context.Context, s source) {
	quiet := logr.Discard()
	to := &sink{w: w, resource: s.resource, known: map[types.NamespacedName]bool{}}
	lw := s.listWatch()
	if s.looked {
		lw = &looking{ListerWatcher: lw, source: s, sink: to}
	}
	r := cache.NewReflectorWithOptions(newPaced(ctx, w, s, lw), s.object(), to, cache.ReflectorOptions{
		Logger: &quiet, // failed logs it, in plain words
		Name:   string(s.resource), TypeDescription: string(s.resource),
		Backoff: &wait.Backoff{Duration: time.Millisecond},
	})
	r.RunWithContext(ctx)
}

// failed notes why a watch fails, and logs it once.
func (w *Watcher) failed(res Resource, err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	text := err.Error()
	if apierrors.IsForbidden(err) && res == OtherNodes {
		text = fmt.Sprintf("%s: node ports are served at this node's addresses only: the runtime needs list and watch on all nodes: use the ClusterRole system:node-proxier or that of the manifests in deploy/", text)
	} else if apierrors.IsForbidden(err) {
		text = fmt.Sprintf("%s: the runtime needs get, list and watch on them: bind its identity to the ClusterRole system:node-proxier, or use the manifests in deploy/", text)
	}
	w.mu.Lock()
	st := w.status[res]
	first := st.LastError == ""
	if first {
		st.Since = time.Now()
	}
	st.LastError = text
	w.status[res] = st
	w.mu.Unlock()
	if first {
		w.cfg.Log.Warn("the API can't be watched; what is programmed stays", "resource", res, "err", text)
	}
}

// optionalPause is how long it is done without what an API server doesn't offer, before it is asked for again: all
// nodes of a cluster do so.
const optionalPause = 10 * time.Minute

// noted takes what came of a list or watch. A watch that resumes brings no
// list: that it lasts shows that it works again.
func (w *Watcher) noted(ctx context.Context, s source, err error) {
	res := s.resource
	if s.optional && (apierrors.IsNotFound(err) || apierrors.IsForbidden(err)) {
		w.cfg.Log.Debug("the API does not offer this, and it is done without", "resource", res, "err", err)
		if s.missed {
			w.failed(res, err)
		}
		w.cfg.Handle([]Event{{Resource: res, Absent: true}})
		select {
		case <-ctx.Done():
		case <-time.After(wait.Jitter(optionalPause, 0.2)):
		}
		return
	}
	if err != nil {
		w.failed(res, err)
		return
	}
	w.mu.Lock()
	objects, synced := w.status[res].Objects, w.status[res].Synced
	w.mu.Unlock()
	if synced {
		w.well(res, false, objects)
	}
}

func (w *Watcher) well(res Resource, synced bool, objects int) {
	w.mu.Lock()
	st := w.status[res]
	failing := st.LastError != "" && !synced // a list is no watch: where those fail, lists are what comes of it
	if !synced {
		st.LastError, st.Since = "", time.Time{}
	}
	st.Objects = objects
	st.Synced = st.Synced || synced
	w.status[res] = st
	w.mu.Unlock()
	if failing {
		w.cfg.Log.Info("the API can be watched again", "resource", res)
	}
}

// Status tells how each watch is doing. One that may be done without is not
// there while it was never heard.
func (w *Watcher) Status() map[Resource]Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make(map[Resource]Status, len(w.status))
	for _, s := range w.sources() {
		if st := w.status[s.resource]; st.Synced || !s.optional || s.missed {
			out[s.resource] = st
		}
	}
	return out
}

// strip leaves of an object what is used.
func (w *Watcher) strip(obj any) (metav1.Object, error) {
	if slim, ok := obj.(*slimNode); ok {
		obj = &slim.Node
	}
	stripped, err := w.cfg.Stripper.Strip(obj)
	if err != nil {
		return nil, err
	}
	o, ok := stripped.(metav1.Object)
	if !ok {
		return nil, fmt.Errorf("watch: %T is no object", obj)
	}
	return o, nil
}
