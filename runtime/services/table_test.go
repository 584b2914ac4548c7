package services

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

// changed are the names of the Services of changes.
func changed(list []Change) string {
	var out []string
	for _, c := range list {
		out = append(out, c.Service.Name)
	}
	return strings.Join(out, " ")
}

func TestTableChanges(t *testing.T) {
	web := func(more ...func(*corev1.Service)) *corev1.Service {
		return service("web", "http:80/tcp", append([]func(*corev1.Service){clusterIPs("172.30.0.41")}, more...)...)
	}
	start := func() *Table {
		return tableOf(thisNode(), web(), slice("1", "web", "http:80/tcp", "10.0.0.1", "10.0.0.2"),
			service("other", "http:80/tcp", clusterIPs("172.30.0.42")), slice("9", "other", "http:80/tcp", "10.0.0.9"))
	}
	for _, tc := range []struct {
		name   string
		change func(*Table) []Change
		want   string // Services that change
		reach  string // 172.30.0.41:80 then
	}{
		{"nothing", func(tb *Table) []Change { return tb.SetSlice(slice("1", "web", "http:80/tcp", "10.0.0.1", "10.0.0.2")) }, "", "10.0.0.1:80 10.0.0.2:80"},
		{"the order of endpoints", func(tb *Table) []Change { return tb.SetSlice(slice("1", "web", "http:80/tcp", "10.0.0.2", "10.0.0.1")) }, "", "10.0.0.1:80 10.0.0.2:80"},
		{"a hint that doesn't matter", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "web", "http:80/tcp", "10.0.0.1 zone=b", "10.0.0.2 zone=b"))
		}, "", "10.0.0.1:80 10.0.0.2:80"},
		{"the same Service again", func(tb *Table) []Change { return tb.SetService(web()) }, "", "10.0.0.1:80 10.0.0.2:80"},
		{"an annotation", func(tb *Table) []Change {
			return tb.SetService(web(func(s *corev1.Service) { s.Annotations = map[string]string{"a": "b"} }))
		}, "", "10.0.0.1:80 10.0.0.2:80"},
		{"an IP comes", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "web", "http:80/tcp", "10.0.0.1", "10.0.0.2", "10.0.0.3"))
		}, "web", "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80"},
		{"an IP goes", func(tb *Table) []Change { return tb.SetSlice(slice("1", "web", "http:80/tcp", "10.0.0.1")) }, "web", "10.0.0.1:80"},
		{"a port comes that the Service hasn't", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "web", "http:80/tcp x:81/tcp", "10.0.0.1", "10.0.0.2"))
		}, "", "10.0.0.1:80 10.0.0.2:80"},
		{"a port goes", func(tb *Table) []Change { return tb.SetSlice(slice("1", "web", "", "10.0.0.1", "10.0.0.2")) }, "web", "rejected"},
		{"an IP and a port come", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "web", "http:80/tcp http:81/tcp", "10.0.0.1", "10.0.0.3"))
		}, "web", "10.0.0.1:80 10.0.0.1:81 10.0.0.3:80 10.0.0.3:81"},
		{"a slice comes", func(tb *Table) []Change { return tb.SetSlice(slice("2", "web", "http:80/tcp", "10.0.0.5")) }, "web", "10.0.0.1:80 10.0.0.2:80 10.0.0.5:80"},
		{"a slice goes", func(tb *Table) []Change { return tb.DeleteSlice(named("1")) }, "web", "rejected"},
		{"a slice goes that was never there", func(tb *Table) []Change { return tb.DeleteSlice(named("77")) }, "", "10.0.0.1:80 10.0.0.2:80"},
		{"a slice moves to another Service", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "other", "http:80/tcp", "10.0.0.1", "10.0.0.2"))
		}, "other web", "rejected"},
		{"a slice loses its Service", func(tb *Table) []Change { return tb.SetSlice(slice("1", "", "http:80/tcp", "10.0.0.1")) }, "web", "rejected"},
		{"a slice goes to another proxy", func(tb *Table) []Change {
			return tb.SetSlice(labelled(slice("1", "web", "http:80/tcp", "10.0.0.1"), LabelProxyName, "x"))
		}, "web", "rejected"},
		{"a port of the slice is renamed", func(tb *Table) []Change { return tb.SetSlice(slice("1", "web", "web:80/tcp", "10.0.0.1", "10.0.0.2")) }, "web", "rejected"},
		{"a port of the slice is renumbered", func(tb *Table) []Change { return tb.SetSlice(slice("1", "web", "http:81/tcp", "10.0.0.1", "10.0.0.2")) }, "web", "10.0.0.1:81 10.0.0.2:81"},
		{"a mixture", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "web", "x:1/tcp http:81/tcp", "10.0.0.2 terminating", "10.0.0.7", "10.0.0.8 notready"))
		}, "web", "10.0.0.7:81"},
		{"an endpoint starts to terminate", func(tb *Table) []Change {
			return tb.SetSlice(slice("1", "web", "http:80/tcp", "10.0.0.1 terminating", "10.0.0.2"))
		}, "web", "10.0.0.2:80"},
		{"the Service goes to another proxy", func(tb *Table) []Change { return tb.SetService(web(svcLabel(LabelProxyName, "x"))) }, "web", "not ours"},
		{"the Service becomes headless", func(tb *Table) []Change { return tb.SetService(web(clusterIPs("None"))) }, "web", "not ours"},
		{"the Service goes", func(tb *Table) []Change { return tb.DeleteService(named("web")) }, "web", "not ours"},
		{"a Service goes that was never there", func(tb *Table) []Change { return tb.DeleteService(named("none")) }, "", "10.0.0.1:80 10.0.0.2:80"},
		{"the node moves to another zone, without hints", func(tb *Table) []Change {
			n := thisNode()
			n.Zone = "zone-b"
			return tb.SetNode(n)
		}, "", "10.0.0.1:80 10.0.0.2:80"},
		{"nil objects", func(tb *Table) []Change { return append(tb.SetService(nil), tb.SetSlice(nil)...) }, "", "10.0.0.1:80 10.0.0.2:80"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := start()
			changes := tc.change(table)
			if got := changed(changes); got != tc.want {
				t.Errorf("changed are %q, want %q", got, tc.want)
			}
			for _, c := range changes {
				if EqualPorts(c.Before, c.After) || !EqualPorts(c.After, table.Desired(c.Service)) {
					t.Errorf("the change of %v is from %v to %v, wanted is %v", c.Service, c.Before, c.After, table.Desired(c.Service))
				}
			}
			tries{{"", pod, "172.30.0.41:80/tcp", tc.reach}}.run(t, table)
		})
	}
}

func TestTableServiceWhoseLabelGoes(t *testing.T) {
	hidden := service("web", "http:80/tcp", clusterIPs("172.30.0.41"), svcLabel(LabelProxyName, "x"))
	table := tableOf(thisNode(), hidden, slice("1", "web", "http:80/tcp", "10.0.0.1"))
	if got := table.Desired(named("web")); got != nil {
		t.Errorf("served is %v", got)
	}
	if got := changed(table.SetService(service("web", "http:80/tcp", clusterIPs("172.30.0.41")))); got != "web" {
		t.Errorf("changed are %q", got)
	}
	tries{{"", pod, "172.30.0.41:80/tcp", "10.0.0.1:80"}}.run(t, table)
}

func TestTableSetNode(t *testing.T) {
	table := tableOf(thisNode(), everyKind(), slice("1", "web", "http:80/tcp", "10.0.0.1 zone=a", "10.0.0.2 zone=b"),
		service("other", "http:80/tcp", clusterIPs("172.30.0.42")), slice("2", "other", "http:80/tcp", "10.0.0.3"))
	n := thisNode()
	n.NodePortAddrs = ips("192.168.0.7")
	if got := changed(table.SetNode(n)); got != "web" {
		t.Errorf("changed are %q", got)
	}
	tries{
		{"the new address", pod, "192.168.0.7:3001/tcp", "10.0.0.1:80"},
		{"the former one", pod, "192.168.0.2:3001/tcp", "not ours"},
		{"loopback", onNode, "127.0.0.1:3001/tcp", "not ours"},
	}.run(t, table)
	n.Zone = "zone-b"
	if got := changed(table.SetNode(n)); got != "web" {
		t.Errorf("changed are %q", got)
	}
	tries{{"the new zone", pod, "172.30.0.41:80/tcp", "10.0.0.2:80"}}.run(t, table)
	n.NodePortAddrs = slices.Concat(n.NodePortAddrs, n.NodePortAddrs)
	if got := table.SetNode(n); got != nil {
		t.Errorf("addresses twice change %v", got)
	}
}

func TestClaimsOfSeveralServices(t *testing.T) {
	at := func(hour int) func(*corev1.Service) {
		return created(time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC))
	}
	older := service("older", "http:80/tcp", clusterIPs("172.30.0.1"), externalIPs("192.168.99.1"), at(1))
	newer := service("newer", "http:80/tcp https:443/tcp", clusterIPs("172.30.0.2"), externalIPs("192.168.99.1"), at(2))
	objects := []any{older, newer, slice("o", "older", "http:80/tcp", "10.0.0.1"), slice("n", "newer", "http:80/tcp https:443/tcp", "10.0.0.2")}
	for range 2 { // in either order
		table := tableOf(thisNode(), objects...)
		tries{
			{"the older one has it", pod, "192.168.99.1:80/tcp", "10.0.0.1:80"},
			{"the newer one has its others", pod, "172.30.0.2:80/tcp", "10.0.0.2:80"},
			{"and its other port there", pod, "192.168.99.1:443/tcp", "10.0.0.2:443"},
		}.run(t, table)
		problems := table.Problems(named("newer"))
		want := "Service ns/newer port http: its external IP tcp/192.168.99.1:80 is served for ns/older"
		if len(problems) != 1 || problems[0].String() != want || problems[0].Reason != FrontendTaken {
			t.Errorf("problems: %v, want %s", problems, want)
		}
		if got := table.Problems(named("older")); len(got) > 0 {
			t.Errorf("problems of the winner: %v", got)
		}
		if got := changed(table.DeleteService(named("older"))); got != "newer older" {
			t.Errorf("the winner's end changes %q", got)
		}
		tries{{"then the newer one has it", pod, "192.168.99.1:80/tcp", "10.0.0.2:80"}}.run(t, table)
		if got := table.Problems(named("newer")); len(got) > 0 {
			t.Errorf("problems then: %v", got)
		}
		if got := changed(table.SetService(older)); got != "newer older" {
			t.Errorf("the winner's return changes %q", got)
		}
		tries{{"then the older one has it again", pod, "192.168.99.1:80/tcp", "10.0.0.1:80"}}.run(t, table)
		slices.Reverse(objects)
	}

	t.Run("an endpoint of a loser changes only the loser", func(t *testing.T) {
		table := tableOf(thisNode(), objects...)
		if got := changed(table.SetSlice(slice("n", "newer", "http:80/tcp", "10.0.0.7"))); got != "newer" {
			t.Errorf("changed are %q", got)
		}
	})
	t.Run("made anew between two events, the older is the newer", func(t *testing.T) {
		table := tableOf(thisNode(), objects...)
		anew := older.DeepCopy()
		at(9)(anew)
		if got := changed(table.SetService(anew)); got != "newer older" {
			t.Errorf("changed are %q", got)
		}
		tries{{"", pod, "192.168.99.1:80/tcp", "10.0.0.2:80"}}.run(t, table)
	})
	t.Run("of equal age, the first by name", func(t *testing.T) {
		table := tableOf(thisNode(), service("b", "http:80/tcp@3001", clusterIPs("172.30.0.2")), service("a", "http:80/tcp@3001", clusterIPs("172.30.0.1")),
			slice("a", "a", "http:80/tcp", "10.0.0.1"), slice("b", "b", "http:80/tcp", "10.0.0.2"))
		tries{{"", pod, "192.168.0.2:3001/tcp", "10.0.0.1:80"}}.run(t, table)
	})
	t.Run("a cluster IP goes before an older external IP", func(t *testing.T) {
		dns := service("dns", "dns:80/tcp", clusterIPs("172.30.0.10"), at(9))
		thief := service("thief", "http:80/tcp", clusterIPs("172.30.0.3"), externalIPs("172.30.0.10"), at(1))
		table := tableOf(thisNode(), thief, dns, slice("d", "dns", "dns:80/tcp", "10.0.0.10"), slice("t", "thief", "http:80/tcp", "10.0.0.66"))
		tries{{"", pod, "172.30.0.10:80/tcp", "10.0.0.10:80"}}.run(t, table)
	})
	t.Run("an external IP that is another's cluster IP, by another port", func(t *testing.T) {
		dns := service("dns", "dns:53/tcp", clusterIPs("172.30.0.10"))
		guest := service("guest", "http:80/tcp", clusterIPs("172.30.0.3"), externalIPs("172.30.0.10"))
		table := tableOf(thisNode(), guest, slice("g", "guest", "http:80/tcp", "10.0.0.66"))
		tries{{"nobody's cluster IP", pod, "172.30.0.10:99/tcp", "not ours"}}.run(t, table)
		if got := changed(table.SetService(dns)); got != "dns guest" {
			t.Errorf("changed are %q", got)
		}
		tries{
			{"each has its port", pod, "172.30.0.10:80/tcp", "10.0.0.66:80"},
			{"what neither serves is refused", pod, "172.30.0.10:99/tcp", "rejected"},
		}.run(t, table)
		if got := changed(table.DeleteService(named("dns"))); got != "dns guest" {
			t.Errorf("changed are %q", got)
		}
		tries{{"nobody's cluster IP again", pod, "172.30.0.10:99/tcp", "not ours"}}.run(t, table)
		table.DeleteService(named("guest"))
		if len(table.claims.cluster)+len(table.claims.guests)+len(table.claims.holder) > 0 {
			t.Errorf("of nothing is left %+v", table.claims)
		}
	})
	t.Run("three of them, and the one in the middle goes", func(t *testing.T) {
		table := tableOf(thisNode(), older, newer, service("third", "http:80/tcp", clusterIPs("172.30.0.3"), externalIPs("192.168.99.1"), at(3)))
		table.DeleteService(named("newer"))
		if len(table.Problems(named("third"))) != 1 || len(table.Problems(named("older"))) != 0 {
			t.Errorf("problems: %v", table.Problems(named("third")))
		}
		table.DeleteService(named("older"))
		if got := table.Problems(named("third")); len(got) > 0 || len(table.claims.rivals) > 0 {
			t.Errorf("problems: %v, rivals: %v", got, table.claims.rivals)
		}
	})
	t.Run("a port that loses every frontend is not there", func(t *testing.T) {
		table := tableOf(thisNode(), service("a", "http:80/tcp", clusterIPs("172.30.0.1")), service("b", "http:80/tcp", clusterIPs("172.30.0.1"), internalLocal))
		if got := table.Desired(named("b")); len(got) > 0 {
			t.Errorf("it is %v", got)
		}
	})
	t.Run("what follows from a lost frontend goes with it", func(t *testing.T) {
		table := tableOf(thisNode(), older, service("newest", "http:80/tcp", clusterIPs("172.30.0.9"), loadBalancer("192.168.99.1"),
			sourceRanges("10.0.0.0/8"), externalLocal, healthPort(32000), at(5)))
		p := table.Desired(named("newest"))[0]
		if len(p.SourceRanges)+len(p.Flags) > 0 || p.ExternalLocal || p.Local != nil || len(p.Frontends) != 1 || len(p.VIPs) != 1 {
			t.Errorf("it is %+v", p)
		}
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
	})
}

func TestTableProblemsInAnyOrderOfEvents(t *testing.T) {
	objects := []any{slice("2", "web", "http:80/tcp", "bad2"), slice("1", "web", "http:80/tcp", "bad1"), everyKind(), slice("3", "web", "http:80/tcp", "bad3")}
	want := fmt.Sprint(tableOf(thisNode(), objects...).Problems(named("web")))
	if strings.Count(want, "bad") != 3 {
		t.Errorf("problems are %v", want)
	}
	slices.Reverse(objects)
	table := tableOf(thisNode(), objects...)
	if got := fmt.Sprint(table.Problems(named("web"))); got != want {
		t.Errorf("problems are %v, in another order of events %v", want, got)
	}
	if got := table.SetSlice(slice("2", "web", "http:80/tcp", "bad")); len(got) != 1 || !EqualPorts(got[0].Before, got[0].After) || len(got[0].Problems) != 3 {
		t.Errorf("another problem changes %v", got)
	}
	if got := table.SetSlice(slice("2", "web", "http:80/tcp", "10.0.0.1")); len(got) != 1 || len(got[0].Problems) != 2 {
		t.Errorf("a problem less changes %v", got)
	}
}

// A table that lived through changes wants what one wants that is new, and what
// it said of them adds up.
func TestTableChangesAddUp(t *testing.T) {
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
func TestTableHold(t *testing.T) {
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

func TestTableHoldUntilEachFamilyHasASlice(t *testing.T) {
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
	sameFrontends := func(a, b owner) bool { return a.frontends == b.frontends }
	if !maps.EqualFunc(table.claims.cluster, fresh.claims.cluster, sameFrontends) || len(table.claims.guests) != len(fresh.claims.guests) {
		t.Errorf("cluster IPs are %v, of a new table %v", table.claims.cluster, fresh.claims.cluster)
	}
	if !maps.Equal(table.claims.outside, fresh.claims.outside) {
		t.Errorf("VIPs for clients outside are %v, of a new table %v", table.claims.outside, fresh.claims.outside)
	}
	if len(table.claims.holder) != len(fresh.claims.holder) || len(table.claims.rivals) != len(fresh.claims.rivals) || len(table.entries) != len(fresh.entries) {
		t.Errorf("%d frontends, %d contested, %d entries; of a new table %d, %d, %d", len(table.claims.holder), len(table.claims.rivals),
			len(table.entries), len(fresh.claims.holder), len(fresh.claims.rivals), len(fresh.entries))
	}
}

func oneOf[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func randomNode(r *rand.Rand) Node {
	return Node{Name: oneOf(r, "test-node", "node2"), Zone: oneOf(r, "", "zone-a", "zone-b"),
		ClusterIPsOutside: r.IntN(3) == 0, Addrs: oneOf(r, nil, nil, ips("192.168.99.1", "1.2.3.1")),
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
	if r.IntN(3) == 0 {
		nodePortRanges(oneOf(r, "true", "false", "?"))(svc)
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

// planned writes changes as they come, by the index that each Port got.
type planned struct {
	fake    *nat.Fake
	planner *nat.Planner
	index   map[PortKey]uint32
}

func newPlanned(t *testing.T) *planned {
	fake := nat.NewFake(4096)
	state, err := fake.Read()
	if err != nil {
		t.Fatal(err)
	}
	return &planned{fake, nat.NewPlanner(state, nat.RuntimeIndexes), map[PortKey]uint32{}}
}

func (p *planned) write(t *testing.T, changes []Change) *nat.State {
	t.Helper()
	stays := map[PortKey]bool{}
	for _, c := range changes {
		for i := range c.After {
			stays[c.After[i].Key] = true
		}
	}
	for _, c := range changes {
		for i := range c.Before {
			if key := c.Before[i].Key; !stays[key] {
				p.planner.Remove(p.index[key])
				delete(p.index, key)
			}
		}
	}
	for _, c := range changes {
		for i := range c.After {
			index, err := p.planner.Assign(p.index[c.After[i].Key], c.After[i].Service)
			if err != nil {
				t.Fatal(err)
			}
			p.index[c.After[i].Key] = index
		}
	}
	applied, err := nat.Apply(p.fake, p.planner.Take())
	if err != nil {
		t.Fatal(err)
	}
	if err := applied.Commit(); err != nil {
		t.Fatal(err)
	}
	state, err := p.fake.Read()
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// What a Table wants and what is written of it, change by change, lead every
// connection to the same.
func TestTableAsWritten(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 11))
		table, written := NewTable(randomNode(r)), newPlanned(t)
		svcs, sls := map[types.NamespacedName]*corev1.Service{}, map[types.NamespacedName]*discoveryv1.EndpointSlice{}
		for step := range 200 {
			state := written.write(t, randomChange(r, table, svcs, sls))
			if step%5 == 0 {
				compareWith(t, table, state)
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

func compareWith(t *testing.T, table *Table, state *nat.State) {
	t.Helper()
	wanted := map[bpf.FrontendKey]bool{}
	for _, ports := range table.All() {
		for _, p := range ports {
			for _, k := range p.Frontends {
				wanted[k] = true
				want, _ := judge(table, netip.Addr{}, k)
				if p.Flags[k]&bpf.FrontendSourceRange != 0 {
					want, _ = judge(table, p.SourceRanges[0].Addr(), k)
				}
				if got := verdictOf(state.Lookup(k)); got != want {
					t.Errorf("%v of %v is written to lead to %s, wanted is %s", k, p.Key, got, want)
				}
				for _, client := range []netip.Addr{netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("2001:db8::9"), netip.MustParseAddr(outside)} {
					want := judgeOutside(table, client, k)
					if got := verdictOf(state.LookupOutside(client, k)); got != want {
						t.Errorf("%v of %v is written to lead %v to %s, wanted is %s", k, p.Key, client, got, want)
					}
				}
			}
			for _, a := range p.ExternalVIPs {
				wanted[bpf.ExternalVIPKeyOf(a)] = true
			}
			for _, a := range p.VIPs {
				wanted[bpf.VIPKeyOf(a)] = true
			}
		}
	}
	for k := range state.Frontends {
		if !wanted[k] {
			t.Errorf("%v is written, but not wanted", k)
		}
		delete(wanted, k)
	}
	for k := range wanted {
		t.Errorf("%v is wanted, but not written", k)
	}
}
