package services

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// tries are what clients of a fixture reach.
type tries []struct{ name, from, to, want string }

func (list tries) run(t *testing.T, table *Table) {
	t.Helper()
	for _, tc := range list {
		t.Run(tc.name, func(t *testing.T) {
			if got := reach(t, table, tc.from, tc.to); got != tc.want {
				t.Errorf("%s -> %s: %s, want %s", tc.from, tc.to, got, tc.want)
			}
		})
	}
}

func everyKind(more ...func(*corev1.Service)) *corev1.Service {
	return service("web", "http:80/tcp@3001", append([]func(*corev1.Service){clusterIPs("172.30.0.41"),
		loadBalancer("1.2.3.4"), externalIPs("192.168.99.11")}, more...)...)
}

func TestPortsWithoutEndpoints(t *testing.T) {
	for _, tc := range []struct {
		name   string
		slices []string
	}{
		{"no slice", nil},
		{"a slice without endpoints", []string{}},
		{"none that is ready or serves", []string{"10.180.0.1 notready local", "10.180.2.1 gone"}},
	} {
		for policy, more := range map[string]func(*corev1.Service){"Cluster": func(*corev1.Service) {}, "Local": externalLocal} {
			t.Run(tc.name+", external policy "+policy, func(t *testing.T) {
				table := tableOf(thisNode(), everyKind(more))
				if tc.slices != nil {
					table.SetSlice(slice("web-1", "web", "http:80/tcp", tc.slices...))
				}
				tries{
					{"a pod by the cluster IP", pod, "172.30.0.41:80/tcp", "rejected"},
					{"a pod by the node port", pod, "192.168.0.2:3001/tcp", "rejected"},
					{"a pod by the load balancer", pod, "1.2.3.4:80/tcp", "rejected"},
					{"outside by the external IP", outside, "192.168.99.11:80/tcp", "rejected"},
					{"outside by the node port", outside, "192.168.0.2:3001/tcp", "rejected"},
					{"outside by the load balancer", outside, "1.2.3.4:80/tcp", "rejected"},
					{"the node by loopback", onNode, "127.0.0.1:3001/tcp", "rejected"},
				}.run(t, table)
			})
		}
	}
}

func TestPortsOfAClusterIP(t *testing.T) {
	table := tableOf(thisNode(),
		service("svc1", "p80:80/tcp", clusterIPs("172.30.0.41")),
		slice("svc1-1", "svc1", "p80:80/tcp", "10.180.0.1 local"),
		service("svc2", "http:80/tcp https:443/tcp dns-udp:53/udp dns-tcp:53/tcp dns-sctp:53/sctp", clusterIPs("172.30.0.42")),
		slice("svc2-1", "svc2", "http:80/tcp https:8443/tcp dns-udp:53/udp dns-tcp:5353/tcp dns-sctp:53/sctp",
			"10.180.0.1 local", "10.180.2.1"))
	tries{
		{"a pod reaches the one endpoint", pod, "172.30.0.41:80/tcp", "10.180.0.1:80"},
		{"a pod reaches itself", "10.180.0.1", "172.30.0.41:80/tcp", "10.180.0.1:80"},
		{"both endpoints are reached", pod, "172.30.0.42:80/tcp", "10.180.0.1:80 10.180.2.1:80"},
		{"on their own port", pod, "172.30.0.42:443/tcp", "10.180.0.1:8443 10.180.2.1:8443"},
		{"TCP on a port of several protocols", pod, "172.30.0.42:53/tcp", "10.180.0.1:5353 10.180.2.1:5353"},
		{"UDP on the same port", pod, "172.30.0.42:53/udp", "10.180.0.1:53 10.180.2.1:53"},
		{"SCTP on the same port", pod, "172.30.0.42:53/sctp", "10.180.0.1:53 10.180.2.1:53"},
		{"UDP to a TCP port", pod, "172.30.0.42:80/udp", "rejected"},
		{"another port of a cluster IP", pod, "172.30.0.41:443/tcp", "rejected"},
		{"an address of the range that no Service has", pod, "172.30.0.99:80/tcp", "not ours"},
	}.run(t, table)
	udp := table.Desired(named("svc2"))[1]
	if udp.Key.Name != "dns-tcp" || udp.Sticky {
		t.Errorf("%v is sticky: %t", udp.Key, udp.Sticky)
	}
	for _, p := range table.Desired(named("svc2")) {
		if want := p.Key.Name == "dns-udp"; p.Sticky != want {
			t.Errorf("%v is sticky: %t, want %t", p.Key, p.Sticky, want)
		}
	}
}

func TestPortsWithExternalTrafficPolicy(t *testing.T) {
	endpoints := slice("web-1", "web", "http:80/tcp", "10.180.0.1", "10.180.2.1 local")
	const both = "10.180.0.1:80 10.180.2.1:80"
	for _, tc := range []struct {
		name    string
		svc     *corev1.Service
		reached string
	}{
		{"Local", everyKind(externalLocal), "10.180.2.1:80"},
		{"Cluster", everyKind(), both},
		{"the default", everyKind(func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = "" }), both},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tries{
				{"a pod by the cluster IP", pod, "172.30.0.41:80/tcp", both},
				{"a pod by the external IP", pod, "192.168.99.11:80/tcp", both},
				{"a pod by the load balancer", pod, "1.2.3.4:80/tcp", both},
				{"a pod by the node port", pod, "192.168.0.2:3001/tcp", both},
				{"the node by the node port", onNode, "192.168.0.2:3001/tcp", both},
				{"the node by loopback", onNode, "127.0.0.1:3001/tcp", both},
				{"outside by the cluster IP", outside, "172.30.0.41:80/tcp", "not ours"},
				{"outside by another port of the cluster IP", outside, "172.30.0.41:81/tcp", "not ours"},
				{"outside by the external IP", outside, "192.168.99.11:80/tcp", tc.reached},
				{"outside by the load balancer", outside, "1.2.3.4:80/tcp", tc.reached},
				{"outside by the node port", outside, "192.168.0.2:3001/tcp", tc.reached},
				{"a port of the load balancer that no Service has", pod, "1.2.3.4:81/tcp", "not ours"},
				{"a port of the external IP that no Service has", pod, "192.168.99.11:81/tcp", "not ours"},
				{"the same for outside: the load balancer", outside, "1.2.3.4:81/tcp", "rejected"},
				{"the same for outside: the external IP", outside, "192.168.99.11:81/udp", "not ours"},
				{"the same for outside: the node", outside, "192.168.0.2:3002/tcp", "not ours"},
			}.run(t, tableOf(thisNode(), tc.svc, endpoints))
		})
	}
}

func TestPortsWithClusterIPsOutside(t *testing.T) {
	node := thisNode()
	node.ClusterIPsOutside = true
	const both, mine = "10.180.0.1:80 10.180.2.1:80", "10.180.2.1:80"
	for _, tc := range []struct {
		name            string
		more            func(*corev1.Service)
		inside, reached string
	}{
		{"policy Cluster", externalLocal, both, both},
		{"internal Local", internalLocal, mine, mine},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := tableOf(node, everyKind(tc.more), slice("web-1", "web", "http:80/tcp", "10.180.0.1", "10.180.2.1 local"))
			tries{
				{"a pod", pod, "172.30.0.41:80/tcp", tc.inside},
				{"outside", outside, "172.30.0.41:80/tcp", tc.reached},
				{"outside by another port", outside, "172.30.0.41:81/tcp", "rejected"},
			}.run(t, table)
			table.SetNode(thisNode())
			tries{
				{"a pod when the setting is gone", pod, "172.30.0.41:80/tcp", tc.inside},
				{"outside then", outside, "172.30.0.41:80/tcp", "not ours"},
				{"outside by another port then", outside, "172.30.0.41:81/tcp", "not ours"},
			}.run(t, table)
		})
	}
}

func TestPortsWithExternalLocalAndNoLocalEndpoint(t *testing.T) {
	for _, tc := range []struct {
		name      string
		endpoints []string
		reached   string
	}{
		{"none here: dropped", []string{"10.180.0.1"}, "dropped"},
		{"the one here is not ready: dropped", []string{"10.180.0.1", "10.180.2.1 local notready"}, "dropped"},
		{"the one here terminates and serves: that one", []string{"10.180.0.1", "10.180.2.1 local terminating"}, "10.180.2.1:80"},
		{"none anywhere: rejected", nil, "rejected"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := tableOf(thisNode(), everyKind(externalLocal), slice("web-1", "web", "http:80/tcp", tc.endpoints...))
			for _, at := range []string{"1.2.3.4:80/tcp", "192.168.99.11:80/tcp", "192.168.0.2:3001/tcp"} {
				tries{{at, outside, at, tc.reached}}.run(t, table)
			}
		})
	}
}

// Which backends are on this node is known of all that connections may get.
func TestPortsOnNode(t *testing.T) {
	web := func(more ...func(*corev1.Service)) []Port {
		return tableOf(thisNode(), everyKind(more...), slice("web-1", "web", "http:80/tcp", "10.0.0.1 zone=a", "10.0.0.2 zone=b local", "10.0.0.3 zone=a local",
			"10.0.0.4 zone=a local notready", "10.0.0.5 zone=a")).Desired(named("web"))
	}
	for _, tc := range []struct {
		name string
		svc  []Port
		want string
	}{
		{"of the cluster's", web(), "10.0.0.3:80"},
		{"of the Local policy's", web(externalLocal), "10.0.0.2:80 10.0.0.3:80"},
	} {
		if got := list(tc.svc[0].OnNode); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	node := thisNode()
	node.AtNodes = true
	table := tableOf(node, nodePort(externalLocal), webSlices()[0], webSlices()[1])
	table.SetNodeAddrs("node2", ips("192.168.0.12"))
	for _, p := range table.Desired(named("web")) {
		if p.Key.Node != "" && len(p.OnNode) > 0 {
			t.Errorf("%v has %v on this node", p.Key, p.OnNode)
		}
	}
}

func TestPortsWithInternalTrafficPolicy(t *testing.T) {
	for _, tc := range []struct {
		name      string
		more      func(*corev1.Service)
		endpoints []string
		want      string
	}{
		{"cluster with three endpoints: all three", func(*corev1.Service) {}, []string{"10.0.0.1 local", "10.0.1.1", "10.0.2.1"}, "10.0.0.1:80 10.0.1.1:80 10.0.2.1:80"},
		{"Local, one local: that one", internalLocal, []string{"10.0.0.1 local", "10.0.1.1", "10.0.2.1"}, "10.0.0.1:80"},
		{"Local, two local of three: those two", internalLocal, []string{"10.0.0.1 local", "10.0.0.2 local", "10.0.2.1"}, "10.0.0.1:80 10.0.0.2:80"},
		{"Local, none local: dropped", internalLocal, []string{"10.0.1.1", "10.0.2.1"}, "dropped"},
		{"Local, no endpoints: rejected", internalLocal, nil, "rejected"},
		{"Cluster, no endpoints: rejected", func(*corev1.Service) {}, nil, "rejected"},
		{"Local, the local one is not ready: dropped", internalLocal, []string{"10.0.0.1 local notready", "10.0.1.1"}, "dropped"},
		{"Local, the local one terminates and serves: that one", internalLocal, []string{"10.0.0.1 local terminating", "10.0.1.1"}, "10.0.0.1:80"},
		{"Local, a local one is ready, another terminates: the ready one", internalLocal, []string{"10.0.0.1 local terminating", "10.0.0.2 local"}, "10.0.0.2:80"},
		{"Local, only remote ones, which terminate: dropped", internalLocal, []string{"10.0.1.1 terminating"}, "dropped"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := tableOf(thisNode(), service("svc1", "p80:80/tcp", clusterIPs("172.30.1.1"), tc.more))
			if tc.endpoints != nil {
				table.SetSlice(slice("svc1-1", "svc1", "p80:80/tcp", tc.endpoints...))
			}
			tries{{"a pod by the cluster IP", pod, "172.30.1.1:80/tcp", tc.want}}.run(t, table)
		})
	}
}

// The policies don't get in each other's way.
func TestPortsWithBothPolicies(t *testing.T) {
	endpoints := slice("web-1", "web", "http:80/tcp", "10.180.0.1", "10.180.2.1 local")
	node := thisNode()
	node.ClusterIPsOutside = true
	const both, mine = "10.180.0.1:80 10.180.2.1:80", "10.180.2.1:80"
	for _, tc := range []struct {
		name                                         string
		svc                                          *corev1.Service
		podInternal, podExternal, reached, byCluster string // byCluster: from outside, where that is allowed
	}{
		{"internal Local", everyKind(internalLocal), mine, both, both, mine},
		{"internal and external Local", everyKind(internalLocal, externalLocal), mine, both, mine, mine},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tries{
				{"a pod by the cluster IP", pod, "172.30.0.41:80/tcp", tc.podInternal},
				{"a pod by the load balancer", pod, "1.2.3.4:80/tcp", tc.podExternal},
				{"a pod by the node port", pod, "192.168.0.2:3001/tcp", tc.podExternal},
				{"outside by the load balancer", outside, "1.2.3.4:80/tcp", tc.reached},
				{"outside by the cluster IP", outside, "172.30.0.41:80/tcp", tc.byCluster},
			}.run(t, tableOf(node, tc.svc, endpoints))
		})
	}
}
