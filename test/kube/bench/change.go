package bench

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firsthop/firsthop/test/kube/bench/wire"
)

// seen are the times at which the watch reported changes, by the slices' names.
type seen struct {
	mu sync.Mutex
	at map[string]time.Duration
}

func (s *seen) of(name string) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at[name]
}

// watch follows the slices from now on, until ctx ends.
func (w *world) watch(ctx context.Context) *seen {
	w.t.Helper()
	api := w.c.Client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault)
	list, err := api.List(ctx, metav1.ListOptions{Limit: 1})
	must(w.t, err)
	events, err := api.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	must(w.t, err)
	s := &seen{at: map[string]time.Duration{}}
	go func() {
		defer events.Stop()
		for ev := range events.ResultChan() {
			at := monotonic()
			if slice, ok := ev.Object.(*discoveryv1.EndpointSlice); ok {
				s.mu.Lock()
				s.at[slice.Name] = at
				s.mu.Unlock()
			}
		}
	}()
	return s
}

// turn is how many changes are measured with firsthop before it is another's turn; with kube-proxy it is a share of that.
const turn = 10

// measureChanges changes one Service after the other and sees when connects reach its new backends. While it is one
// contender's turn, the others' processes are stopped. Between two changes there is a random time up to a second, as
// kube-proxy, by its default, programs no more often than once in a second: a change finds it in that second, or not.
func (w *world) measureChanges() map[string][]Change {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	seen := w.watch(ctx)
	rng := rand.New(rand.NewPCG(3, 4))
	results := map[string][]Change{}
	full := w.full()
	for _, k := range w.contenders {
		k.proc.Pause()
	}
	for done := 0; done < w.opts.Changes; done += turn {
		for i := range full {
			k := full[(i+done/turn)%len(full)]
			k.proc.Resume()
			w.changeOne(ctx, k, seen) // what it has missed meanwhile comes before
			upTo := min(done+turn, w.opts.Changes)
			if k.name != firsthop {
				upTo = upTo * w.opts.Slow / w.opts.Changes
			}
			for len(results[k.name]) < upTo {
				time.Sleep(time.Duration(rng.Int64N(int64(time.Second))))
				results[k.name] = append(results[k.name], w.changeOne(ctx, k, seen))
			}
			k.proc.Pause()
		}
	}
	for _, k := range w.contenders {
		k.proc.Resume()
		w.changeOne(ctx, k, seen)
	}
	return results
}

// changeOne changes the next Service.
func (w *world) changeOne(ctx context.Context, k *contender, seen *seen) Change {
	w.t.Helper()
	i := w.changed
	w.changed++
	k.client.send(wire.Request{Do: wire.Await, Targets: []string{target(i)}, Greeted: true, For: long})
	if r := k.client.receive(); !r.Started {
		w.t.Fatalf("%s: Service %d leads to its new backends before the change", k.name, i)
	}
	must(w.t, w.change(ctx, i))
	r := k.client.receive()
	if r.At == 0 {
		w.t.Fatalf("%s: Service %d does not lead to its new backends: %v", k.name, i, r.Failures)
	}
	refused := 0
	for _, n := range r.Failures {
		refused += n
	}
	var at time.Duration
	for at == 0 { // the watch of a client may be slower than a proxy
		at = seen.of(serviceName(i) + "-1")
		time.Sleep(time.Millisecond)
	}
	return Change{Seconds: (r.At - at).Seconds(), Refused: refused}
}

// measureMany changes many Services at a pace and returns what processor time it took the contenders, which all work at
// the same time, until the last change has come through everywhere.
func (w *world) measureMany() *Many {
	w.t.Helper()
	ctx := w.t.Context()
	before := map[string]float64{}
	for _, k := range w.contenders {
		before[k.name] = cpuSeconds(w.t, k.proc.PID())
	}
	begin := time.Now()
	tick := time.NewTicker(time.Second / time.Duration(w.opts.Pace))
	defer tick.Stop()
	for range w.opts.Many {
		<-tick.C
		must(w.t, w.change(ctx, w.changed))
		w.changed++
	}
	m := &Many{Changes: w.opts.Many, Seconds: time.Since(begin).Seconds(), CPU: map[string]float64{}}
	last := target(w.changed - 1)
	for _, k := range w.contenders {
		k.client.send(wire.Request{Do: wire.Await, Targets: []string{last}, Greeted: true, For: long})
	}
	for _, k := range w.contenders {
		r := k.client.receive()
		if r.Started {
			r = k.client.receive()
		}
		if r.At == 0 {
			w.t.Fatalf("%s: the last of %d changes does not come through: %v", k.name, w.opts.Many, r.Failures)
		}
	}
	time.Sleep(2 * time.Second) // for what they do after that, as kube-proxy's work at leisure
	for _, k := range w.contenders {
		m.CPU[k.name] = cpuSeconds(w.t, k.proc.PID()) - before[k.name]
	}
	return m
}
