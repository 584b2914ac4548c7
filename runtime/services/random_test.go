package services

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
)

// A table that lived through changes wants what one wants that is new, and what
// it said of them adds up.
func TestChangesAddUp(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 7))
		table, said := NewTable(randomNode(r)), map[types.NamespacedName][]Port{}
		svcs, sls := map[types.NamespacedName]*corev1.Service{}, map[types.NamespacedName]*discoveryv1.EndpointSlice{}
		for step := range 300 {
			changes := randomChange(r, table, svcs, sls)
			for _, c := range changes {
				if !EqualPorts(said[c.Service], c.Before) {
					t.Fatalf("seed %d, step %d: before, %v wanted %v, not %v", seed, step, c.Service, said[c.Service], c.Before)
				}
				said[c.Service] = c.After
			}
			if step%10 == 0 {
				checkTable(t, table, said, svcs, sls)
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

// While lists come a table may hold Services back until their slices are there; what comes of it is the same.
func TestWhatIsHeldIsWorkedOutInTheEnd(t *testing.T) {
	held := 0
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 8))
		table, said := NewTable(randomNode(r)), map[types.NamespacedName][]Port{}
		table.Hold()
		svcs, sls := map[types.NamespacedName]*corev1.Service{}, map[types.NamespacedName]*discoveryv1.EndpointSlice{}
		var changes []Change
		for range 100 {
			changes = append(changes, randomChange(r, table, svcs, sls)...)
		}
		held += len(table.held)
		for _, c := range append(changes, table.Release()...) {
			if !EqualPorts(said[c.Service], c.Before) {
				t.Fatalf("seed %d: before, %v wanted %v, not %v", seed, c.Service, said[c.Service], c.Before)
			}
			said[c.Service] = c.After
		}
		if checkTable(t, table, said, svcs, sls); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if held == 0 {
		t.Error("nothing was held")
	}
}

func TestAServiceWaitsForASliceOfEachFamily(t *testing.T) {
	table := NewTable(Node{Name: "n"})
	table.Hold()
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9",
		ClusterIPs: []string{"10.96.0.9", "fd00::9"}, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}}}
	slice := func(n string, is discoveryv1.AddressType, addr string) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: n, Labels: map[string]string{discoveryv1.LabelServiceName: "a"}},
			AddressType: is, Ports: []discoveryv1.EndpointPort{{Name: new(""), Port: new(int32(80))}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{addr}}}}
	}
	for _, changes := range [][]Change{table.SetService(svc), table.SetSlice(slice("a-4", discoveryv1.AddressTypeIPv4, "10.1.1.1"))} {
		if len(changes) > 0 {
			t.Errorf("before all slices: %+v", changes)
		}
	}
	if changes := table.SetSlice(slice("a-6", discoveryv1.AddressTypeIPv6, "fd01::1")); len(changes) != 1 || len(changes[0].After) != 2 {
		t.Errorf("with both: %+v", changes)
	}
	if changes := table.Release(); len(changes) > 0 {
		t.Errorf("at the end: %+v", changes)
	}
}

func randomChange(r *rand.Rand, table *Table, svcs map[types.NamespacedName]*corev1.Service, sls map[types.NamespacedName]*discoveryv1.EndpointSlice) []Change {
	switch r.IntN(8) {
	case 0, 1:
		svc := randomService(r)
		svcs[types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}] = svc
		return table.SetService(svc)
	case 2:
		name := randomName(r)
		delete(svcs, name)
		return table.DeleteService(name)
	case 3:
		name := named(fmt.Sprint("slice-", r.IntN(8)))
		delete(sls, name)
		return table.DeleteSlice(name)
	case 4:
		return table.SetNode(randomNode(r))
	}
	s := randomSlice(r)
	sls[types.NamespacedName{Namespace: s.Namespace, Name: s.Name}] = s
	return table.SetSlice(s)
}

func checkTable(t *testing.T, table *Table, said map[types.NamespacedName][]Port, svcs map[types.NamespacedName]*corev1.Service, sls map[types.NamespacedName]*discoveryv1.EndpointSlice) {
	t.Helper()
	fresh := NewTable(table.node)
	for _, s := range sls { // in random order
		fresh.SetSlice(s)
	}
	for _, s := range svcs {
		fresh.SetService(s)
	}
	has := map[bpf.FrontendKey]PortKey{}
	n := 0
	for name, ports := range table.All() {
		n++
		if !EqualPorts(ports, fresh.Desired(name)) || !EqualPorts(ports, said[name]) {
			t.Errorf("%v wants\n%v\na new table\n%v\nthe changes say\n%v", name, ports, fresh.Desired(name), said[name])
		}
		if !slices.Equal(table.Problems(name), fresh.Problems(name)) {
			t.Errorf("problems of %v:\n%v\nof a new table\n%v", name, table.Problems(name), fresh.Problems(name))
		}
		for _, p := range ports {
			if err := p.Validate(); err != nil {
				t.Error(err)
			}
			for _, k := range p.Frontends {
				if other, ok := has[k]; ok {
					t.Errorf("%v is both %v's and %v's", k, p.Key, other)
				}
				has[k] = p.Key
			}
		}
		if changes := table.SetService(svcs[name].DeepCopy()); len(changes) > 0 {
			t.Errorf("an unchanged Service changes %v", changes)
		}
	}
	for name := range fresh.All() {
		n--
		_ = name
	}
	if n != 0 {
		t.Errorf("a table that is new has %d more Services", -n)
	}
	for _, s := range sls {
		if changes := table.SetSlice(s.DeepCopy()); len(changes) > 0 {
			t.Errorf("an unchanged slice changes %v", changes)
		}
	}
	if !maps.Equal(table.claims.cluster, fresh.claims.cluster) || len(table.claims.guests) != len(fresh.claims.guests) {
		t.Errorf("cluster IPs are %v, of a new table %v", table.claims.cluster, fresh.claims.cluster)
	}
	if len(table.claims.holder) != len(fresh.claims.holder) || len(table.claims.rivals) != len(fresh.claims.rivals) || len(table.entries) != len(fresh.entries) {
		t.Errorf("%d frontends, %d contested, %d entries; of a new table %d, %d, %d", len(table.claims.holder), len(table.claims.rivals),
			len(table.entries), len(fresh.claims.holder), len(fresh.claims.rivals), len(fresh.entries))
	}
}

func oneOf[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func randomNode(r *rand.Rand) Node {
	return Node{Name: oneOf(r, "test-node", "node2"), Zone: oneOf(r, "", "zone-a", "zone-b"),
		NodePortAddrs: oneOf(r, nil, ips("192.168.0.2"), ips("192.168.0.2", "127.0.0.1", "::1", "fd00:9::2"))}
}

func randomName(r *rand.Rand) types.NamespacedName { return named(oneOf(r, "a", "b", "c", "d", "e")) }

// randomService makes one of few names that may claim what others claim.
func randomService(r *rand.Rand) *corev1.Service {
	ports := oneOf(r, "", "http:80/tcp", "http:80/tcp@3001 dns:53/udp@3002", "dns:53/udp@3001 https:443/tcp@3001 sip:5060/sctp", "http:80/tcp x:80/tcp")
	svc := service(randomName(r).Name, ports, created(time.Unix(int64(r.IntN(3)), 0)))
	ip := func(f string) string { return fmt.Sprintf(f, r.IntN(5)) }
	oneOf(r, clusterIPs(ip("172.30.0.%d")), clusterIPs(ip("172.30.0.%d"), ip("fd00::%d")), clusterIPs(ip("fd00::%d")), clusterIPs("None"))(svc)
	oneOf(r, externalIPs(), externalIPs(ip("192.168.99.%d"), ip("2001:db8::%d")), externalIPs(ip("172.30.0.%d"), "no"))(svc)
	for _, some := range []func(*corev1.Service){
		loadBalancer(ip("1.2.3.%d"), ip("192.168.99.%d")), sourceRanges("10.0.0.0/8", "2001:db8::/32"), internalLocal, externalLocal, healthPort(32000),
	} {
		if r.IntN(2) == 0 {
			some(svc)
		}
	}
	for i := range svc.Status.LoadBalancer.Ingress {
		svc.Status.LoadBalancer.Ingress[i].IPMode = oneOf(r, nil, new(corev1.LoadBalancerIPModeVIP), new(corev1.LoadBalancerIPModeProxy))
	}
	if r.IntN(10) == 0 {
		svc.Labels = map[string]string{LabelProxyName: "x"}
	}
	return svc
}

func randomSlice(r *rand.Rand) *discoveryv1.EndpointSlice {
	var eps []string
	v6 := r.IntN(4) == 0
	for range r.IntN(6) {
		ep := fmt.Sprintf("10.0.0.%d", r.IntN(9))
		if v6 {
			ep = fmt.Sprintf("fd01::%d", r.IntN(9))
		}
		for _, w := range []string{"local", oneOf(r, "notready", "terminating", "gone"), oneOf(r, "zone=a", "zone=b"), "zone=c", "node=test-node", "node=node3"} {
			if r.IntN(3) == 0 {
				ep += " " + w
			}
		}
		eps = append(eps, ep)
	}
	s := slice(fmt.Sprint("slice-", r.IntN(8)), randomName(r).Name, oneOf(r, "http:80/tcp dns:53/udp", "http:8080/tcp https:8443/tcp sip:5060/sctp", "http x:1/tcp"), eps...)
	if r.IntN(10) == 0 {
		s.Labels[LabelProxyName] = "x"
	}
	return s
}
