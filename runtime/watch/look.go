package watch

import (
	"context"
	"errors"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// looking asks for all objects by a list when the reflector asks for them for the first time, and by a watch-list, as
// the reflector does, ever after.
//
// A start waits for what the API server sends, and a watch-list takes it three times as long as a list: each object is
// an event, a frame and a write of its own (10,000 Services and slices by Kubernetes 1.36: 0.2 s instead of 0.65 s). What
// watch-lists are for, that an API server doesn't keep whole lists in memory, doesn't count for a single one that starts,
// and since 1.33 it sends lists piece by piece (KEP-5116); it counts for all nodes that lose their watches at once.
type looking struct {
	cache.ListerWatcher
	source source
	sink   *sink
}

// WatchWithContext implements cache.WatcherWithContext.
func (l *looking) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	whole := o.SendInitialEvents != nil && *o.SendInitialEvents
	if !whole || l.sink.whole {
		return cache.ToListerWatcherWithContext(l.ListerWatcher).WatchWithContext(ctx, o)
	}
	version, err := l.look(ctx)
	if errors.Is(err, errNotProtobuf) || errors.Is(err, errPages) {
		return cache.ToListerWatcherWithContext(l.ListerWatcher).WatchWithContext(ctx, o)
	}
	if err != nil {
		return nil, err
	}
	w, err := cache.ToListerWatcherWithContext(l.ListerWatcher).WatchWithContext(ctx, metav1.ListOptions{
		ResourceVersion: version, AllowWatchBookmarks: true, TimeoutSeconds: o.TimeoutSeconds,
	})
	if err != nil {
		return nil, err // the reflector asks again, and gets a watch-list
	}
	l.sink.passed = true
	return newLooked(w, l.source, version), nil
}

// ListWithContext implements cache.ListerWithContext: the reflector falls back to it when the first list failed. It would
// take one of any age then, which could remove Services that are already served.
func (l *looking) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	if !l.sink.whole {
		o.ResourceVersion, o.ResourceVersionMatch = "", ""
	}
	return cache.ToListerWatcherWithContext(l.ListerWatcher).ListWithContext(ctx, o)
}

// look lists all objects and tells of them as they come. The list is as new as one of etcd's, of which the API server
// makes sure (KEP-2340; before Kubernetes 1.31 it asks etcd).
func (l *looking) look(ctx context.Context) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	o := l.source.options
	body, err := l.source.client.Get().Resource(l.source.path).VersionedParams(&o, metav1.ParameterCodec).
		SetHeader("Accept-Encoding", "identity"). // to compress it takes the API server longer than to send it
		MaxRetries(0).Stream(ctx)
	if err != nil {
		return "", err
	}
	defer body.Close()
	return l.sink.look(func(each func(object) error) (string, error) {
		return readList(body, l.source.object, each)
	})
}

// looked is a watch that begins with the bookmark that ends a watch-list.
type looked struct {
	watch.Interface
	first chan watch.Event
}

func newLooked(w watch.Interface, s source, version string) *looked {
	end := s.object()
	end.SetResourceVersion(version)
	end.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	l := &looked{Interface: w, first: make(chan watch.Event, 1)}
	l.first <- watch.Event{Type: watch.Bookmark, Object: end}
	return l
}

// ResultChan is asked for before each event.
func (l *looked) ResultChan() <-chan watch.Event {
	if len(l.first) > 0 {
		return l.first
	}
	return l.Interface.ResultChan()
}
