package running

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/firsthop/firsthop/test/kube/cluster"
)

// poolSize is how many pods a Service has to choose its endpoints from. They are nobody else's: a connect that goes
// astray is known by where it ends.
const poolSize = 6

// churned is a Service that changes. Clients use its first port, 80, which stays.
type churned struct {
	history
	number int
	svc    *corev1.Service
	slice  *discoveryv1.EndpointSlice
}

func newChurned(number int, proto corev1.Protocol) *churned {
	ch := &churned{number: number, svc: &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("churned-%d", number)}}}
	ch.svc.Spec.Type = corev1.ServiceTypeClusterIP
	ch.svc.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyCluster)
	ch.svc.Spec.SessionAffinity = corev1.ServiceAffinityNone
	ch.svc.Spec.Ports = []corev1.ServicePort{sp("main", proto, 80, firstPort)}
	ch.slice = sliceOf(ch.svc, 8*number+1, 8*number+2)
	return ch
}

// usable is what the first port leads to, by the rules, and what a connect comes to without.
func (ch *churned) usable(absent bool) (usable map[string]bool, otherwise string) {
	if absent {
		return nil, refused
	}
	port := ch.slice.Ports[0]
	if *port.Name != ch.svc.Spec.Ports[0].Name {
		return nil, refused
	}
	pick := func(local, terminating bool) map[string]bool {
		set := map[string]bool{}
		for _, e := range ch.slice.Endpoints {
			c := e.Conditions
			fits := *c.Ready
			if terminating {
				fits = *c.Serving && *c.Terminating
			}
			if fits && (!local || *e.NodeName == here) {
				set[fmt.Sprintf("%s:%d", e.Addresses[0], *port.Port)] = true
			}
		}
		return set
	}
	choose := func(local bool) map[string]bool {
		if ready := pick(local, false); len(ready) > 0 {
			return ready
		}
		return pick(local, true)
	}
	all := choose(false)
	if *ch.svc.Spec.InternalTrafficPolicy != corev1.ServiceInternalTrafficPolicyLocal {
		return all, refused
	}
	if local := choose(true); len(local) > 0 || len(all) == 0 {
		return local, refused
	}
	return nil, dropped
}

// changes are what may happen to a Service, each one write to the API, and how often.
func (ch *churned) change(r *rand.Rand) (what string, o metav1.Object) {
	spec := &ch.svc.Spec
	switch n := r.IntN(100); {
	case n < 55:
		ch.slice.Endpoints = ch.randomEndpoints(r)
		return "endpoints", ch.slice
	case n < 65:
		ch.slice.Ports[0].Port = new(firstPort + secondPort - *ch.slice.Ports[0].Port)
		return "target port", ch.slice
	case n < 70: // until the slice follows, the port has no endpoints
		spec.Ports[0].Name = fmt.Sprint("main-", r.IntN(1000))
		return "name of the port", ch.svc
	case n < 80:
		if *spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal {
			spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyCluster)
		} else {
			spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
		}
		return "internal policy", ch.svc
	case n < 90:
		if spec.Type == corev1.ServiceTypeClusterIP {
			spec.Type = corev1.ServiceTypeNodePort
		} else {
			spec.Type = corev1.ServiceTypeClusterIP
			for i := range spec.Ports {
				spec.Ports[i].NodePort = 0
			}
		}
		return "type", ch.svc
	case n < 95:
		if spec.SessionAffinity == corev1.ServiceAffinityNone {
			spec.SessionAffinity = corev1.ServiceAffinityClientIP
		} else {
			spec.SessionAffinity, spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
		}
		return "affinity", ch.svc
	}
	if len(spec.Ports) == 1 {
		spec.Ports = append(spec.Ports, corev1.ServicePort{Name: "more", Protocol: spec.Ports[0].Protocol, Port: 81, TargetPort: intstr.FromInt32(firstPort)})
	} else {
		spec.Ports = spec.Ports[:1]
	}
	return "another port", ch.svc
}

func (ch *churned) randomEndpoints(r *rand.Rand) []discoveryv1.Endpoint {
	var list []discoveryv1.Endpoint
	if r.IntN(12) == 0 {
		return nil
	}
	for _, i := range r.Perm(poolSize)[:1+r.IntN(4)] {
		ready, serving, terminating := true, true, false
		switch r.IntN(8) {
		case 0:
			ready, terminating = false, true
		case 1:
			ready, serving = false, false
		}
		list = append(list, discoveryv1.Endpoint{
			Addresses:  []string{remoteAddr(0, 8*ch.number+i).String()},
			NodeName:   new([]string{here, there}[r.IntN(2)]),
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		})
	}
	return list
}

// write writes an object of the Service and notes what the Service is from then on.
func (ch *churned) write(ctx context.Context, c *cluster.Cluster, what string, o metav1.Object) error {
	f := fact{what: what, begin: monotonic()}
	if err := c.TryApply(ctx, o); err != nil {
		return err
	}
	f.end, f.version = monotonic(), o.GetResourceVersion()
	f.usable, f.otherwise = ch.usable(false)
	ch.add(f)
	return nil
}

// turn makes one change; one in fifty is that the Service goes and comes back.
func (ch *churned) turn(ctx context.Context, c *cluster.Cluster, r *rand.Rand) error {
	if r.IntN(50) == 0 {
		f := fact{what: "deleted", begin: monotonic()}
		if err := c.Client.CoreV1().Services("default").Delete(ctx, ch.svc.Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
		f.end = monotonic()
		f.usable, f.otherwise = ch.usable(true)
		ch.add(f)
		return ch.write(ctx, c, "created again", ch.svc)
	}
	what, o := ch.change(r)
	if err := ch.write(ctx, c, what, o); err != nil {
		return err
	}
	if name := ch.svc.Spec.Ports[0].Name; *ch.slice.Ports[0].Name != name {
		ch.slice.Ports[0].Name = &name
		return ch.write(ctx, c, "name of the slice's port", ch.slice)
	}
	return nil
}

// watched is when a watch told of each version of each object.
type watched struct {
	mu   sync.Mutex
	seen map[string]int64
}

// follow watches Services and EndpointSlices until the context ends.
func (w *watched) follow(ctx context.Context, c *cluster.Cluster) error {
	w.seen = map[string]int64{}
	for _, open := range []func(context.Context, metav1.ListOptions) (watch.Interface, error){
		c.Client.CoreV1().Services("default").Watch, c.Client.DiscoveryV1().EndpointSlices("default").Watch,
	} {
		events, err := open(ctx, metav1.ListOptions{TimeoutSeconds: new(int64(3600))})
		if err != nil {
			return err
		}
		go func() {
			defer events.Stop()
			for e := range events.ResultChan() {
				if o, ok := e.Object.(metav1.Object); ok {
					w.mu.Lock()
					w.seen[o.GetResourceVersion()] = monotonic()
					w.mu.Unlock()
				}
			}
		}()
	}
	return nil
}

// note fills in when facts were seen.
func (w *watched) note(h *history) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, f := range h.facts {
		h.facts[i].seen = w.seen[f.version]
	}
}
