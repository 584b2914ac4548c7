package watch

import (
	"errors"
	"fmt"
	"maps"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/firsthop/firsthop/runtime/services"
)

// errBadList says that a list can't be whole.
var errBadList = errors.New("the list lacks the Service default/kubernetes, which every cluster has: it is ignored")

// errHalf says that a list lacks most of what there was.
var errHalf = errors.New("the list lacks more than half of what there was: it is asked for again")

// manyObjects is from how many on a list that lacks most of them is doubted.
const manyObjects = 20

// sink is what a reflector stores to: it keeps names only, and hands objects on.
// A reflector calls it one call at a time.
type sink struct {
	w        *Watcher
	resource Resource
	known    map[types.NamespacedName]bool
	doubted  bool // the last list lacked most of what is known

	early  map[types.NamespacedName]bool // passed on before a list was whole
	whole  bool                          // a list was taken
	passed bool                          // on by look; what the reflector has of it is to be ignored
}

var _ cache.TransformingStore = (*sink)(nil)

// Transformer strips what a watch-list collects before it is whole.
func (s *sink) Transformer() cache.TransformFunc { return s.w.cfg.Stripper.Strip }

func (s *sink) Add(obj any) error    { return s.put(obj) }
func (s *sink) Update(obj any) error { return s.put(obj) }
func (s *sink) Resync() error        { return nil }

func (s *sink) put(obj any) error {
	o, err := s.w.strip(obj)
	if err != nil {
		return err
	}
	name := nameOf(o)
	s.known[name] = true
	s.w.well(s.resource, false, len(s.known))
	s.w.cfg.Handle([]Event{{Resource: s.resource, Name: name, Object: o}})
	return nil
}

func (s *sink) Delete(obj any) error {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	o, ok := obj.(metav1.Object)
	if !ok {
		return fmt.Errorf("watch: %T is no object", obj)
	}
	name := nameOf(o)
	delete(s.known, name)
	s.w.well(s.resource, false, len(s.known))
	s.w.cfg.Handle([]Event{{Resource: s.resource, Name: name}})
	return nil
}

// Replace takes a whole list. The reflector has nothing of what look passed on.
func (s *sink) Replace(list []any, _ string) error {
	if s.passed {
		s.passed = false
		return nil
	}
	events := make([]Event, 0, len(list)+1)
	now := make(map[types.NamespacedName]bool, len(list))
	for _, obj := range list {
		o, err := s.w.strip(obj)
		if err != nil {
			return err
		}
		name := nameOf(o)
		now[name] = true
		events = append(events, Event{Resource: s.resource, Name: name, Object: o})
	}
	return s.take(now, events)
}

// lookBatch is how many objects of a list are passed on at once while it comes.
const lookBatch = 256

// look takes a first list while it comes, so that most was made of it when it is whole.
func (s *sink) look(list func(each func(object) error) (version string, err error)) (version string, err error) {
	events := make([]Event, 0, lookBatch)
	now := map[types.NamespacedName]bool{}
	version, err = list(func(obj object) error {
		o, err := s.w.strip(obj)
		if err != nil {
			return err
		}
		name := nameOf(o)
		now[name] = true
		events = append(events, Event{Resource: s.resource, Name: name, Object: o})
		if len(events) == lookBatch {
			s.w.cfg.Handle(events)
			events = make([]Event, 0, lookBatch) // the handler may keep them
		}
		return nil
	})
	if err == nil {
		err = s.take(now, events)
	}
	if err != nil {
		if s.early == nil {
			s.early = now
		}
		maps.Copy(s.early, now)
		return "", err
	}
	return version, nil
}

// take takes a whole list, of which events are still to be passed on. What it lacks has gone, unless the list can't be
// true: an API server that lost its store, or reads one that is empty, says
// that there is nothing. The reflector asks again after its back-off.
func (s *sink) take(now map[types.NamespacedName]bool, events []Event) error {
	s.w.cfg.Log.Debug("a list is complete", "resource", s.resource, "objects", len(now))
	if s.resource == Services && !now[services.APIService] {
		s.w.failed(s.resource, errBadList)
		return errBadList
	}
	if few := len(s.known) >= manyObjects && len(now) < len(s.known)/2; few && !s.doubted {
		s.doubted = true
		s.w.failed(s.resource, errHalf)
		return errHalf
	}
	s.doubted = false
	for _, former := range []map[types.NamespacedName]bool{s.known, s.early} {
		for name := range former {
			if !now[name] {
				events = append(events, Event{Resource: s.resource, Name: name})
			}
		}
	}
	s.known, s.early, s.whole = now, nil, true
	s.w.well(s.resource, true, len(now))
	s.w.cfg.Handle(append(events, Event{Resource: s.resource, Synced: true}))
	return nil
}

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}
