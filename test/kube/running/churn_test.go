package running

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
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

// churned is a dual-stack Service that changes. Clients of each family use its first port, 80, which stays: by its cluster
// IP, or, of one Service in three, by an external IP.
type churned struct {
	histories [2]history // by family
	number    int
	svc       *corev1.Service
	slices    [2]*discoveryv1.EndpointSlice
}

func newChurned(number int, proto corev1.Protocol) *churned {
	ch := &churned{number: number, svc: &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("churned-%d", number)}}}
	spec := &ch.svc.Spec
	spec.Type = corev1.ServiceTypeClusterIP
	spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
	spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyCluster)
	spec.SessionAffinity = corev1.ServiceAffinityNone
	spec.Ports = []corev1.ServicePort{sp("main", proto, 80, firstPort)}
	if number%3 == 2 {
		spec.ExternalIPs = []string{fmt.Sprintf("198.51.100.%d", number), fmt.Sprintf("fd00:51::%d", number)}
		spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	}
	for family, kind := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		slice := sliceOf(ch.svc)
		slice.Name, slice.AddressType = fmt.Sprintf("%s-%d", ch.svc.Name, family), kind
		slice.Endpoints = []discoveryv1.Endpoint{ch.endpoint(family, 1, true, true, false), ch.endpoint(family, 2, true, true, false)}
		ch.slices[family] = slice
	}
	return ch
}

// external tells whether its clients use an external IP.
func (ch *churned) external() bool { return len(ch.svc.Spec.ExternalIPs) > 0 }

// target is where the clients of a family connect to.
func (ch *churned) target(family int) string {
	if ch.external() {
		return net.JoinHostPort(ch.svc.Spec.ExternalIPs[family], "80")
	}
	return net.JoinHostPort(ch.svc.Spec.ClusterIPs[family], "80")
}

func (ch *churned) endpoint(family, i int, ready, serving, terminating bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses: []string{remoteAddr(family, 8*ch.number+i).String()}, NodeName: new(there),
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
	}
}

// usable is what the first port leads to for pods, by the rules, and what a connect comes to without.
func (ch *churned) usable(family int, absent bool) (usable map[string]bool, otherwise string) {
	if absent && ch.external() {
		return nil, unserved
	}
	if absent {
		return nil, refused
	}
	slice := ch.slices[family]
	if *slice.Ports[0].Name != ch.svc.Spec.Ports[0].Name {
		return nil, refused
	}
	pick := func(fits func(discoveryv1.Endpoint) bool) map[string]bool {
		set := map[string]bool{}
		for _, e := range slice.Endpoints {
			if fits(e) {
				set[netip.AddrPortFrom(netip.MustParseAddr(e.Addresses[0]), uint16(*slice.Ports[0].Port)).String()] = true
			}
		}
		return set
	}
	choose := func(hints, policy func(discoveryv1.Endpoint) bool) map[string]bool {
		ready := pick(func(e discoveryv1.Endpoint) bool { return *e.Conditions.Ready && hints(e) && policy(e) })
		if len(ready) > 0 {
			return ready
		}
		return pick(func(e discoveryv1.Endpoint) bool {
			return *e.Conditions.Serving && *e.Conditions.Terminating && policy(e)
		})
	}
	every := func(discoveryv1.Endpoint) bool { return true }
	ours := func(e discoveryv1.Endpoint) bool { return *e.NodeName == here }
	all := choose(ch.inZone(family), every)
	// The external policy is for clients outside of the cluster.
	if ch.external() || *ch.svc.Spec.InternalTrafficPolicy != corev1.ServiceInternalTrafficPolicyLocal {
		return all, refused
	}
	if local := choose(every, ours); len(local) > 0 || len(all) == 0 {
		return local, refused
	}
	if ch.svc.Spec.Ports[0].Protocol == corev1.ProtocolUDP {
		return nil, refused // both lead nowhere
	}
	return nil, dropped
}

// inZone leaves the endpoints that hints leave: those for this zone, where every ready one has hints and one of them is
// for it; otherwise all.
func (ch *churned) inZone(family int) func(discoveryv1.Endpoint) bool {
	hinted := func(e discoveryv1.Endpoint) bool {
		return e.Hints != nil && slices.ContainsFunc(e.Hints.ForZones, func(z discoveryv1.ForZone) bool { return z.Name == ownZone })
	}
	every, some := true, false
	for _, e := range ch.slices[family].Endpoints {
		if *e.Conditions.Ready {
			every = every && e.Hints != nil
			some = some || hinted(e)
		}
	}
	if every && some {
		return hinted
	}
	return func(discoveryv1.Endpoint) bool { return true }
}

// changes are what may happen to a Service, each one write to the API, and how often.
func (ch *churned) change(r *rand.Rand) (what string, o metav1.Object) {
	spec := &ch.svc.Spec
	slice := ch.slices[r.IntN(2)]
	switch n := r.IntN(100); {
	case n < 40:
		slice.Endpoints = ch.randomEndpoints(r, slice.AddressType)
		return "endpoints", slice
	case n < 52:
		randomHints(r, slice.Endpoints)
		return "hints", slice
	case n < 60:
		slice.Ports[0].Port = new(firstPort + secondPort - *slice.Ports[0].Port)
		return "target port", slice
	case n < 65: // until the slices follow, the port has no endpoints
		spec.Ports[0].Name = fmt.Sprint("main-", r.IntN(1000))
		return "name of the port", ch.svc
	case n < 74:
		if *spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal {
			spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyCluster)
		} else {
			spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
		}
		return "internal policy", ch.svc
	case n < 83 && spec.ExternalTrafficPolicy != "":
		if spec.ExternalTrafficPolicy == local {
			spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
		} else {
			spec.ExternalTrafficPolicy = local
		}
		return "external policy", ch.svc
	case n < 90:
		if spec.Type == corev1.ServiceTypeClusterIP {
			spec.Type, spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyCluster
		} else {
			spec.Type = corev1.ServiceTypeClusterIP
			for i := range spec.Ports {
				spec.Ports[i].NodePort = 0
			}
			if !ch.external() {
				spec.ExternalTrafficPolicy = ""
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

func (ch *churned) randomEndpoints(r *rand.Rand, kind discoveryv1.AddressType) []discoveryv1.Endpoint {
	var list []discoveryv1.Endpoint
	if r.IntN(12) == 0 {
		return nil
	}
	family := 0
	if kind == discoveryv1.AddressTypeIPv6 {
		family = 1
	}
	for _, i := range r.Perm(poolSize)[:1+r.IntN(4)] {
		e := ch.endpoint(family, i, true, true, false)
		switch r.IntN(8) {
		case 0:
			*e.Conditions.Ready, *e.Conditions.Terminating = false, true
		case 1:
			*e.Conditions.Ready, *e.Conditions.Serving = false, false
		}
		e.NodeName = new([]string{here, there}[r.IntN(2)])
		list = append(list, e)
	}
	if r.IntN(2) == 0 {
		randomHints(r, list)
	}
	return list
}

// randomHints gives endpoints hints for zones: none has any, each has, or one lacks them.
func randomHints(r *rand.Rand, list []discoveryv1.Endpoint) {
	zones := []string{ownZone, "zone-b", "zone-c"}
	how := r.IntN(4)
	for i := range list {
		list[i].Hints = nil
		if how == 0 || how == 1 && i == 0 {
			continue
		}
		list[i].Hints = &discoveryv1.EndpointHints{}
		for _, z := range r.Perm(len(zones))[:1+r.IntN(2)] {
			list[i].Hints.ForZones = append(list[i].Hints.ForZones, discoveryv1.ForZone{Name: zones[z]})
		}
	}
}

// write writes an object of the Service and notes what the Service is from then on.
func (ch *churned) write(ctx context.Context, c *cluster.Cluster, what string, o metav1.Object) error {
	f := fact{what: what, begin: monotonic()}
	if err := c.TryApply(ctx, o); err != nil {
		return err
	}
	f.end, f.version = monotonic(), o.GetResourceVersion()
	ch.add(f, false)
	return nil
}

// add notes what the Service is for each family.
func (ch *churned) add(f fact, absent bool) {
	for family := range 2 {
		f.usable, f.otherwise = ch.usable(family, absent)
		ch.histories[family].add(f)
	}
}

// turn makes one change; one in fifty is that the Service goes and comes back.
func (ch *churned) turn(ctx context.Context, c *cluster.Cluster, r *rand.Rand) error {
	if r.IntN(50) == 0 {
		f := fact{what: "deleted", begin: monotonic()}
		if err := c.Client.CoreV1().Services("default").Delete(ctx, ch.svc.Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
		f.end = monotonic()
		ch.add(f, true)
		return ch.write(ctx, c, "created again", ch.svc)
	}
	what, o := ch.change(r)
	if err := ch.write(ctx, c, what, o); err != nil {
		return err
	}
	for _, slice := range ch.slices {
		if name := ch.svc.Spec.Ports[0].Name; *slice.Ports[0].Name != name {
			slice.Ports[0].Name = &name
			if err := ch.write(ctx, c, "name of a slice's port", slice); err != nil {
				return err
			}
		}
	}
	return nil
}

// watched is when a watch reported each version of each object.
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
