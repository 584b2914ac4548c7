package services

import (
	"math/rand/v2"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func TestChooseEndpoints(t *testing.T) {
	hinted := []string{"10.1.2.3 zone=a", "10.1.2.4 zone=b", "10.1.2.5 zone=c", "10.1.2.6 zone=a"}
	withLocal := []string{"10.1.2.3 zone=a", "10.1.2.4 zone=b local", "10.1.2.5 zone=c local", "10.1.2.6 zone=a"}
	const all = "10.1.2.3:80 10.1.2.4:80 10.1.2.5:80 10.1.2.6:80"
	here := func(n *Node) {}
	for _, tc := range []struct {
		name      string
		node      func(*Node)
		endpoints []string
		cluster   string // what everybody reaches
		local     string // what is reached under a Local policy
	}{
		{"hints a, b, c, a: the two of zone-a", here, hinted, "10.1.2.3:80 10.1.2.6:80", "dropped"},
		{"a Local policy reaches all local ones, whatever their zone", here, withLocal, "10.1.2.3:80 10.1.2.6:80", "10.1.2.4:80 10.1.2.5:80"},
		{"a node without a zone: no filtering", func(n *Node) { n.Zone = "" }, hinted, all, "dropped"},
		{"no endpoint for the node's zone: no filtering", func(n *Node) { n.Zone = "zone-d" }, hinted, all, "dropped"},
		{"an endpoint without a hint: no filtering", here, []string{"10.1.2.3 zone=a", "10.1.2.4"}, "10.1.2.3:80 10.1.2.4:80", "dropped"},
		{"one that is not ready needs no hint", here, []string{"10.1.2.3 zone=a", "10.1.2.4 zone=b", "10.1.2.5 notready"}, "10.1.2.3:80", "dropped"},
		{"an endpoint of my zone that is not ready is left out", here, []string{"10.1.2.3 zone=a notready", "10.1.2.4 zone=b", "10.1.2.6 zone=a"}, "10.1.2.6:80", "dropped"},
		{"only such ones in my zone: no filtering", here, []string{"10.1.2.3 zone=a notready", "10.1.2.4 zone=b", "10.1.2.5 zone=c"}, "10.1.2.4:80 10.1.2.5:80", "dropped"},
		{"several hints on an endpoint: one match is enough", here, []string{"10.1.2.3 zone=b zone=a", "10.1.2.4 zone=b zone=c", "10.1.2.5 zone=c"}, "10.1.2.3:80", "dropped"},
		{"all are for the node: only those", here, []string{"10.1.2.3 node=test-node", "10.1.2.4 node=node2"}, "10.1.2.3:80", "dropped"},
		{"node hints go before zone hints", here, []string{"10.1.2.3 node=test-node zone=b", "10.1.2.4 node=node2 zone=a"}, "10.1.2.3:80", "dropped"},
		{"none is for the node: zone hints", here, []string{"10.1.2.3 node=node3 zone=b", "10.1.2.4 node=node2 zone=a"}, "10.1.2.4:80", "dropped"},
		{"one without a node hint: zone hints", here, []string{"10.1.2.3 zone=b", "10.1.2.4 node=test-node zone=b", "10.1.2.5 node=node2 zone=a"}, "10.1.2.5:80", "dropped"},
		{"one without either: no filtering", here, []string{"10.1.2.3", "10.1.2.4 node=test-node zone=a"}, "10.1.2.3:80 10.1.2.4:80", "dropped"},
		{"none ready, some serving and terminating: those", here, []string{"10.1.2.3 terminating", "10.1.2.4 gone", "10.1.2.5 notready"}, "10.1.2.3:80", "dropped"},
		{"hints have no say among terminating ones", here, []string{"10.1.2.3 terminating zone=a", "10.1.2.4 terminating zone=b"}, "10.1.2.3:80 10.1.2.4:80", "dropped"},
		{"one ready: no terminating one", here, []string{"10.1.2.3 terminating", "10.1.2.4"}, "10.1.2.4:80", "dropped"},
		{"a terminating one is the last on this node: local traffic gets it, cluster traffic does not", here, []string{"10.1.2.3 terminating local", "10.1.2.4"}, "10.1.2.4:80", "10.1.2.3:80"},
		{"hints don't leave an endpoint that local traffic gets", here, []string{"10.1.2.3 zone=a", "10.1.2.4 zone=b local"}, "10.1.2.3:80", "10.1.2.4:80"},
		{"a node without a name has nothing local", func(n *Node) { n.Name = "" }, []string{"10.1.2.3 local"}, "10.1.2.3:80", "dropped"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := thisNode()
			tc.node(&node)
			endpoints := slice("web-1", "web", "http:80/tcp", tc.endpoints...)
			table := tableOf(node, everyKind(internalLocal, externalLocal), endpoints)
			tries{
				{"cluster traffic", pod, "1.2.3.4:80/tcp", tc.cluster},
				{"local traffic from inside", pod, "172.30.0.41:80/tcp", tc.local},
				{"local traffic from outside", outside, "1.2.3.4:80/tcp", tc.local},
			}.run(t, table)
			table = tableOf(node, everyKind(), endpoints)
			tries{{"with policy Cluster", pod, "172.30.0.41:80/tcp", tc.cluster}}.run(t, table)
		})
	}
}

func TestPolicyLocalOfNothingExternal(t *testing.T) {
	endpoints := slice("web-1", "web", "http:80/tcp", "10.1.2.3", "10.1.2.4 local")
	for _, tc := range []struct {
		name  string
		svc   *corev1.Service
		local bool
	}{
		{"a ClusterIP Service", service("web", "http:80/tcp", clusterIPs("172.30.0.41"), externalLocal), false},
		{"a NodePort Service that has no node port", service("web", "http:80/tcp", clusterIPs("172.30.0.41"), ofType(corev1.ServiceTypeNodePort), externalLocal), false},
		{"a LoadBalancer Service without addresses", service("web", "http:80/tcp", clusterIPs("172.30.0.41"), loadBalancer(), externalLocal), false},
		{"a ClusterIP Service with a left-over load balancer IP", service("web", "http:80/tcp", clusterIPs("172.30.0.41"), loadBalancer("1.2.3.4"), ofType(corev1.ServiceTypeClusterIP), externalLocal), false},
		{"a ClusterIP Service with an external IP", service("web", "http:80/tcp", clusterIPs("172.30.0.41"), externalIPs("192.168.99.11"), externalLocal), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := tableOf(thisNode(), tc.svc, endpoints).Desired(named("web"))[0]
			if p.ExternalLocal != tc.local || (p.Local != nil) != tc.local {
				t.Errorf("external local %t with %v, want %t", p.ExternalLocal, p.Local, tc.local)
			}
			if got := list(p.Backends); got != "10.1.2.3:80 10.1.2.4:80" {
				t.Errorf("cluster traffic gets %s", got)
			}
		})
	}
}

func TestEndpointsOfSeveralSlices(t *testing.T) {
	web := service("web", "http:80/tcp", clusterIPs("172.30.0.41"))
	for _, tc := range []struct {
		name   string
		slices []*discoveryv1.EndpointSlice
		want   string
	}{
		{"endpoints of several slices", []*discoveryv1.EndpointSlice{
			slice("1", "web", "http:80/tcp", "10.0.0.2"), slice("2", "web", "http:80/tcp", "10.0.0.1")}, "10.0.0.1:80 10.0.0.2:80"},
		{"a port of the name with other numbers", []*discoveryv1.EndpointSlice{
			slice("1", "web", "http:8080/tcp", "10.0.0.1"), slice("2", "web", "http:9090/tcp", "10.0.0.1", "10.0.0.2")}, "10.0.0.1:8080 10.0.0.1:9090 10.0.0.2:9090"},
		{"another name", []*discoveryv1.EndpointSlice{slice("1", "web", "https:80/tcp", "10.0.0.1")}, "rejected"},
		{"another protocol", []*discoveryv1.EndpointSlice{slice("1", "web", "http:80/udp", "10.0.0.1")}, "rejected"},
		{"a nil port", []*discoveryv1.EndpointSlice{slice("1", "web", "http", "10.0.0.1")}, "rejected"},
		{"an address twice", []*discoveryv1.EndpointSlice{
			slice("1", "web", "http:80/tcp", "10.0.0.1"), slice("2", "web", "http:80/tcp", "10.0.0.1")}, "10.0.0.1:80"},
		{"ready in one slice, not in another", []*discoveryv1.EndpointSlice{
			slice("1", "web", "http:80/tcp", "10.0.0.1 notready"), slice("2", "web", "http:80/tcp", "10.0.0.1")}, "10.0.0.1:80"},
		{"terminating in one, ready in another", []*discoveryv1.EndpointSlice{
			slice("1", "web", "http:80/tcp", "10.0.0.1 terminating", "10.0.0.2"), slice("2", "web", "http:80/tcp", "10.0.0.1")}, "10.0.0.1:80 10.0.0.2:80"},
		{"terminating in one, not ready yet in another", []*discoveryv1.EndpointSlice{
			slice("1", "web", "http:80/tcp", "10.0.0.1 terminating"), slice("2", "web", "http:80/tcp", "10.0.0.1 notready")}, "rejected"},
		{"no endpoints in a family", []*discoveryv1.EndpointSlice{slice("1", "web", "http:80/tcp", "fd00::1")}, "rejected"},
		{"a slice of names", []*discoveryv1.EndpointSlice{func() *discoveryv1.EndpointSlice {
			s := slice("1", "web", "http:80/tcp", "10.0.0.1")
			s.AddressType = discoveryv1.AddressTypeFQDN
			return s
		}()}, "rejected"},
		{"a slice for another proxy", []*discoveryv1.EndpointSlice{
			labelled(slice("1", "web", "http:80/tcp", "10.0.0.1"), LabelProxyName, ""), slice("2", "web", "http:80/tcp", "10.0.0.2")}, "10.0.0.2:80"},
		{"a slice of a headless Service", []*discoveryv1.EndpointSlice{
			labelled(slice("1", "web", "http:80/tcp", "10.0.0.1"), corev1.IsHeadlessService, "")}, "rejected"},
		{"addresses that mean something else elsewhere", []*discoveryv1.EndpointSlice{
			slice("1", "web", "http:80/tcp", "127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0", "255.255.255.255", "no", "10.0.0.1")}, "10.0.0.1:80"},
		{"an address of the other family in a slice", []*discoveryv1.EndpointSlice{func() *discoveryv1.EndpointSlice {
			s := slice("1", "web", "http:80/tcp", "fd00::1", "10.0.0.1")
			s.AddressType = discoveryv1.AddressTypeIPv4
			return s
		}()}, "10.0.0.1:80"},
		{"leading zeros, as old objects have them", []*discoveryv1.EndpointSlice{slice("1", "web", "http:80/tcp", "010.00.0.09")}, "10.0.0.9:80"},
		{"the first address of several", []*discoveryv1.EndpointSlice{func() *discoveryv1.EndpointSlice {
			s := slice("1", "web", "http:80/tcp", "10.0.0.1")
			s.Endpoints[0].Addresses = append(s.Endpoints[0].Addresses, "10.0.0.2")
			return s
		}()}, "10.0.0.1:80"},
		{"no protocol is TCP", []*discoveryv1.EndpointSlice{func() *discoveryv1.EndpointSlice {
			s := slice("1", "web", "http:80/tcp", "10.0.0.1")
			s.Ports[0].Protocol = nil
			return s
		}()}, "10.0.0.1:80"},
		{"conditions that nobody knows", []*discoveryv1.EndpointSlice{func() *discoveryv1.EndpointSlice {
			s := slice("1", "web", "http:80/tcp", "10.0.0.1")
			s.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Terminating: new(false)}
			return s
		}()}, "10.0.0.1:80"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			for range 6 { // the order of slices has no meaning
				table := tableOf(thisNode(), web)
				for _, s := range tc.slices {
					table.SetSlice(s)
				}
				tries{{"a pod", pod, "172.30.0.41:80/tcp", tc.want}}.run(t, table)
				r.Shuffle(len(tc.slices), func(i, j int) { tc.slices[i], tc.slices[j] = tc.slices[j], tc.slices[i] })
			}
		})
	}
}

// Flows go on to what still serves, whether or not new ones get there.
func TestStillServing(t *testing.T) {
	table := tableOf(thisNode(), service("dns", "dns:53/udp", clusterIPs("172.30.0.10"), internalLocal),
		slice("dns-1", "dns", "dns:53/udp", "10.0.0.1 zone=a", "10.0.0.2 zone=b", "10.0.0.3 terminating", "10.0.0.4 gone", "10.0.0.5 notready"))
	p := table.Desired(named("dns"))[0]
	if got := list(p.Serving); got != "10.0.0.1:53 10.0.0.2:53 10.0.0.3:53" {
		t.Errorf("serving are %s", got)
	}
	if got := list(p.Backends); got != "10.0.0.1:53" {
		t.Errorf("connections get %s", got)
	}
	if p.Local == nil || len(p.Local) > 0 || p.Flags[p.Frontends[0]] == 0 {
		t.Errorf("local traffic gets %v by %v", p.Local, p.Flags)
	}
}

func TestHealthCheckNodePorts(t *testing.T) {
	for _, tc := range []struct {
		name   string
		svc    *corev1.Service
		slices []*discoveryv1.EndpointSlice
		port   uint16
		local  int
	}{
		{"two local ones, one of them behind two ports", everyKind(externalLocal, healthPort(32000)), []*discoveryv1.EndpointSlice{
			slice("1", "web", "http:80/tcp admin:81/tcp", "10.0.0.1 local", "10.0.0.2"), slice("2", "web", "admin:81/tcp", "10.0.0.3 local")}, 32000, 2},
		{"all local ones terminate: none", everyKind(externalLocal, healthPort(32000)), []*discoveryv1.EndpointSlice{
			slice("1", "web", "http:80/tcp", "10.0.0.1 local terminating", "10.0.0.2 local terminating")}, 32000, 0},
		{"none is local", everyKind(externalLocal, healthPort(32000)), []*discoveryv1.EndpointSlice{slice("1", "web", "http:80/tcp", "10.0.0.1")}, 32000, 0},
		{"policy Cluster: not asked for", everyKind(healthPort(32000)), []*discoveryv1.EndpointSlice{slice("1", "web", "http:80/tcp", "10.0.0.1 local")}, 0, 0},
		{"a NodePort Service: not asked for", everyKind(externalLocal, healthPort(32000), ofType(corev1.ServiceTypeNodePort)), []*discoveryv1.EndpointSlice{slice("1", "web", "http:80/tcp", "10.0.0.1 local")}, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := tableOf(thisNode(), tc.svc, tc.slices[0])
			for _, s := range tc.slices[1:] {
				p.SetSlice(s)
			}
			got := p.Desired(named("web"))[0]
			if got.HealthCheckNodePort != tc.port || got.LocalReady != tc.local {
				t.Errorf("port %d with %d ready, want %d with %d", got.HealthCheckNodePort, got.LocalReady, tc.port, tc.local)
			}
		})
	}
}

// The order that decides between endpoints of one address is total.
func TestCompareIsAnOrder(t *testing.T) {
	addr := backends("10.0.0.1:80")[0]
	var all []endpoint
	for tr := range 256 {
		all = append(all, endpoint{addr, traits(tr), ""}, endpoint{addr, traits(tr), "node2"})
	}
	for _, a := range all {
		for _, b := range all {
			c := compare(a, b)
			if c != -compare(b, a) || (c == 0) != (a == b) {
				t.Fatalf("%b and %b compare as %d and %d", a.traits, b.traits, c, compare(b, a))
			}
			if !a.has(terminating) && b.has(terminating) && c > 0 {
				t.Fatalf("%b that terminates goes before %b", b.traits, a.traits)
			}
			if a.has(terminating) == b.has(terminating) && a.has(ready) && !b.has(ready) && c > 0 {
				t.Fatalf("%b that is not ready goes before %b", b.traits, a.traits)
			}
		}
	}
	slices.SortFunc(all, compare)
	if !all[0].has(ready|serving|local) || all[0].has(terminating) {
		t.Errorf("%b goes first", all[0].traits)
	}
}

func TestHealthOfTwoFamilies(t *testing.T) {
	web := service("web", "http:80/tcp a:81/tcp", clusterIPs("172.30.0.41", "fd00::41"), loadBalancer("1.2.3.4"), externalLocal, healthPort(32000))
	table := tableOf(thisNode(), web, slice("1", "web", "http:80/tcp a:81/tcp", "10.0.0.1 local", "10.0.0.2 local"), slice("2", "web", "http:80/tcp", "fd01::1 local", "fd01::2"))
	got, ok := HealthOf(table.Desired(named("web")))
	if want := (Health{Port: 32000, Ready4: 2, Ready6: 1, Has4: true, Has6: true}); !ok || got != want {
		t.Errorf("health is %+v, want %+v", got, want)
	}
	if changes := table.SetSlice(slice("1", "web", "http:80/tcp a:81/tcp", "10.0.0.1 local", "10.0.0.2 local terminating")); len(changes) != 1 {
		t.Errorf("changes: %v", changes)
	}
	if got, _ := HealthOf(table.Desired(named("web"))); got.Ready4 != 1 {
		t.Errorf("health is then %+v", got)
	}
	if got, ok := HealthOf(nil); ok {
		t.Errorf("the health of nothing is %+v", got)
	}
}
