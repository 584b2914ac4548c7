package services

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func apiService(more ...func(*corev1.Service)) *corev1.Service {
	svc := service("kubernetes", "https:443/tcp", append([]func(*corev1.Service){clusterIPs("172.30.0.1")}, more...)...)
	svc.Namespace = "default"
	return svc
}

func apiSlice() *discoveryv1.EndpointSlice {
	s := slice("kubernetes", "kubernetes", "https:6443/tcp", "192.0.2.11")
	s.Namespace = "default"
	return s
}

// reserving is a table with a Service evil that is as old as can be, and has a claim on what is given.
func reserving(r Reserved, ports string, more ...func(*corev1.Service)) *Table {
	old := append([]func(*corev1.Service){clusterIPs("172.30.0.66"), created(time.Unix(1, 0))}, more...)
	t := tableOf(thisNode(), apiService(created(time.Unix(1000, 0))), apiSlice(), service("evil", ports, old...),
		slice("e", "evil", "p:6443/tcp p:6443/udp q:7443/tcp", "10.0.0.66"))
	t.SetReserved(r)
	return t
}

func TestReservedFrontendsAreNotGranted(t *testing.T) {
	servers := Reserved{Servers: backends("192.0.2.11:6443", "[fd00::11]:6443", "127.0.0.1:7445"), Service: backends("172.30.0.1:443")}
	for _, tc := range []struct {
		name, ports string
		claim       func(*corev1.Service)
		at, reach   string
		problem     string
	}{
		{"an external IP", "p:6443/tcp", externalIPs("192.0.2.11"), "192.0.2.11:6443/tcp", "not ours", "its external IP tcp/192.0.2.11:6443 is not served: it is the address of an API server"},
		{"with leading zeros", "p:6443/tcp", externalIPs("192.000.002.011"), "192.0.2.11:6443/tcp", "not ours", "tcp/192.0.2.11:6443"},
		{"in IPv6 form", "p:6443/tcp", externalIPs("::ffff:192.0.2.11"), "192.0.2.11:6443/tcp", "not ours", "tcp/192.0.2.11:6443"},
		{"a load balancer IP", "p:6443/tcp", loadBalancer("192.0.2.11"), "192.0.2.11:6443/tcp", "not ours", "its load balancer IP"},
		{"a cluster IP", "p:6443/tcp", clusterIPs("192.0.2.11"), "192.0.2.11:6443/tcp", "not ours", "its cluster IP"},
		{"IPv6", "p:6443/tcp", func(s *corev1.Service) {
			clusterIPs("172.30.0.66", "fd00:30::66")(s)
			externalIPs("fd00::11")(s)
		}, "[fd00::11]:6443/tcp", "not ours", "tcp/[fd00::11]:6443"},
		{"a node port on loopback addresses", "p:80/tcp@7445", ofType(corev1.ServiceTypeNodePort), "127.0.0.1:7445/tcp", "not ours", "its node port tcp/127.0.0.0:7445"},
		{"the API service", "p:443/tcp", externalIPs("172.30.0.1"), "172.30.0.1:443/tcp", "192.0.2.11:6443", "it is the address of the API service"},
		{"UDP is nobody's", "p:6443/udp", externalIPs("192.0.2.11"), "192.0.2.11:6443/udp", "10.0.0.66:6443", ""},
		{"another port", "q:7443/tcp", externalIPs("192.0.2.11"), "192.0.2.11:7443/tcp", "10.0.0.66:7443", ""},
		{"another address", "p:6443/tcp", externalIPs("192.0.2.12"), "192.0.2.12:6443/tcp", "10.0.0.66:6443", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := reserving(servers, tc.ports, tc.claim)
			tries{{tc.name, pod, tc.at, tc.reach}}.run(t, table)
			problems := table.Problems(named("evil"))
			if tc.problem == "" {
				if len(problems) > 0 {
					t.Errorf("problems: %v", problems)
				}
				return
			}
			if !slices.ContainsFunc(problems, func(p Problem) bool {
				return p.Reason == AddressReserved && p.Object == named("evil") && strings.Contains(p.Message, tc.problem)
			}) {
				t.Errorf("problems: %v, want %q", problems, tc.problem)
			}
		})
	}
}

func TestReservedFrontendsComeAndGo(t *testing.T) {
	table := reserving(Reserved{}, "p:6443/tcp q:7443/tcp", externalIPs("192.0.2.11"))
	there := func(want string) {
		t.Helper()
		tries{{"the claim", pod, "192.0.2.11:6443/tcp", want}, {"its other port", pod, "192.0.2.11:7443/tcp", "10.0.0.66:7443"},
			{"its cluster IP", pod, "172.30.0.66:6443/tcp", "10.0.0.66:6443"}}.run(t, table)
	}
	there("10.0.0.66:6443")
	servers := Reserved{Servers: backends("192.0.2.11:6443")}
	changes := table.SetReserved(servers)
	if got := changed(changes); got != "evil" {
		t.Errorf("the new API server changes %q", got)
	}
	if gone := gone(changes); len(gone) != 1 || gone[0].String() != "tcp/192.0.2.11:6443" {
		t.Errorf("gone: %v", gone)
	}
	there("not ours")
	if got := table.SetReserved(servers); len(got) > 0 {
		t.Errorf("the same again changes %v", got)
	}
	table.SetService(service("evil", "p:6443/tcp q:7443/tcp", clusterIPs("172.30.0.66"), externalIPs("192.0.2.11", "192.0.2.12")))
	there("not ours")
	if got := changed(table.SetReserved(Reserved{})); got != "evil" {
		t.Errorf("the end of the API server changes %q", got)
	}
	there("10.0.0.66:6443")
}

// The API service keeps its own address even where nothing says yet that it is reserved.
func TestClaimsOfTheAPIServiceWin(t *testing.T) {
	table := tableOf(thisNode(), service("evil", "p:443/tcp", clusterIPs("172.30.0.1"), created(time.Unix(1, 0))),
		slice("e", "evil", "p:443/tcp", "10.0.0.66"), apiService(created(time.Unix(1000, 0))), apiSlice())
	tries{{"the API service", pod, "172.30.0.1:443/tcp", "192.0.2.11:6443"}}.run(t, table)
}

func TestReservedForTheNamespaceDefault(t *testing.T) {
	table := tableOf(thisNode(), service("kubernetes", "p:6443/tcp", clusterIPs("172.30.0.66"), externalIPs("192.0.2.11")),
		slice("e", "kubernetes", "p:6443/tcp", "10.0.0.66"))
	table.SetReserved(Reserved{Servers: backends("192.0.2.11:6443")})
	tries{{"the claim", pod, "192.0.2.11:6443/tcp", "not ours"}}.run(t, table)
}

// An API server at a cluster IP must not be refused as one of its unserved ports.
func TestReservedServersAreNoVIPs(t *testing.T) {
	table := tableOf(thisNode(), service("web", "p:80/tcp", clusterIPs("172.30.0.9")), slice("w", "web", "p:80/tcp", "10.0.0.1"))
	tries{{"an unserved port", pod, "172.30.0.9:6443/tcp", "rejected"}}.run(t, table)
	table.SetReserved(Reserved{Servers: backends("172.30.0.9:6443")})
	tries{{"an API server", pod, "172.30.0.9:6443/tcp", "not ours"}, {"the Service", pod, "172.30.0.9:80/tcp", "10.0.0.1:80"}}.run(t, table)
	table.SetReserved(Reserved{})
	tries{{"no API server any more", pod, "172.30.0.9:6443/tcp", "rejected"}}.run(t, table)
}

func TestNodeAddressesAsExternalIPs(t *testing.T) {
	for _, deny := range []bool{false, true} {
		node := thisNode()
		node.Addrs, node.DenyExternal = ips("192.168.0.2", "127.0.0.1"), deny
		table := tableOf(node, service("web", "p:10250/tcp@30080", ofType(corev1.ServiceTypeNodePort), clusterIPs("172.30.0.9"), externalIPs("192.168.0.2", "192.0.2.77")),
			slice("w", "web", "p:80/tcp", "10.0.0.1"),
			service("lb", "p:81/tcp", clusterIPs("172.30.0.10"), loadBalancer("192.168.0.2")), slice("l", "lb", "p:80/tcp", "10.0.0.2"))
		web, lb := "10.0.0.1:80", "10.0.0.2:80"
		if deny {
			web, lb = "not ours", "not ours"
		}
		tries{{"an external IP", pod, "192.168.0.2:10250/tcp", web}, {"a load balancer IP", pod, "192.168.0.2:81/tcp", lb},
			{"the node port", pod, "192.168.0.2:30080/tcp", "10.0.0.1:80"}, {"another address", pod, "192.0.2.77:10250/tcp", "10.0.0.1:80"}}.run(t, table)
		for _, name := range []string{"web", "lb"} {
			if got := table.Problems(named(name)); len(got) != 1 || got[0].Reason != NodeAddress {
				t.Errorf("denied: %v: problems of %s: %v", deny, name, got)
			}
		}
	}
}
