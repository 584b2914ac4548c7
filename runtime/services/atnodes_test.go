package services

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/bpf"
)

// cluster3 is a table of a node that knows two others; objects as for tableOf.
func cluster3(objects ...any) *Table {
	node := thisNode()
	node.AtNodes = true
	t := tableOf(node, objects...)
	t.SetNodeAddrs("node2", ips("192.168.0.12", "203.0.113.12", "fd00:9::12"))
	t.SetNodeAddrs("node3", ips("192.168.0.13", "fd00:9::13"))
	return t
}

func nodePort(more ...func(*corev1.Service)) *corev1.Service {
	return service("web", "p:80/tcp@3001 d:53/udp@3053", append([]func(*corev1.Service){ofType(corev1.ServiceTypeNodePort), clusterIPs("172.30.0.41", "fd00:30::41")}, more...)...)
}

func webSlices() []any {
	return []any{
		slice("w4", "web", "p:8080/tcp d:5353/udp", "10.180.0.1 local", "10.180.2.1", "10.180.2.2"),
		slice("w6", "web", "p:8080/tcp d:5353/udp", "fd00:180::1 local", "fd00:180:2::1"),
	}
}

func TestNodePortsAtOtherNodes(t *testing.T) {
	cluster := append(webSlices(), nodePort())
	local := append(webSlices(), nodePort(externalLocal))
	tries{
		{"an internal address", pod, "192.168.0.12:3001/tcp", "10.180.0.1:8080 10.180.2.1:8080 10.180.2.2:8080"},
		{"an external address", pod, "203.0.113.12:3001/tcp", "10.180.0.1:8080 10.180.2.1:8080 10.180.2.2:8080"},
		{"IPv6", pod, "[fd00:9::13]:3001/tcp", "[fd00:180::1]:8080 [fd00:180:2::1]:8080"},
		{"UDP", pod, "192.168.0.13:3053/udp", "10.180.0.1:5353 10.180.2.1:5353 10.180.2.2:5353"},
		{"another port", pod, "192.168.0.12:3002/tcp", "not ours"},
		{"another protocol", pod, "192.168.0.12:3001/udp", "not ours"},
		{"no node's address", pod, "192.168.0.14:3001/tcp", "not ours"},
		{"our own address", pod, "192.168.0.2:3001/tcp", "10.180.0.1:8080 10.180.2.1:8080 10.180.2.2:8080"},
		{"the unspecified address is loopback", onNode, "0.0.0.0:3001/tcp", "10.180.0.1:8080 10.180.2.1:8080 10.180.2.2:8080"},
	}.run(t, cluster3(cluster...))
	tries{
		{"Local: that node's endpoints", pod, "192.168.0.12:3001/tcp", "10.180.2.1:8080 10.180.2.2:8080"},
		{"Local: at its external address", pod, "203.0.113.12:3053/udp", "10.180.2.1:5353 10.180.2.2:5353"},
		{"Local: IPv6", pod, "[fd00:9::12]:3001/tcp", "[fd00:180:2::1]:8080"},
		{"Local: a node without endpoints", pod, "192.168.0.13:3001/tcp", "not ours"},
		{"Local: our own address", pod, "192.168.0.2:3001/tcp", "10.180.0.1:8080 10.180.2.1:8080 10.180.2.2:8080"},
	}.run(t, cluster3(local...))
}

func TestNodePortsAtOtherNodesAreForNodePortsOnly(t *testing.T) {
	table := cluster3(append(webSlices(), nodePort(ofType(corev1.ServiceTypeLoadBalancer), loadBalancer("1.2.3.4"), sourceRanges("198.51.100.0/24")))...)
	tries{
		{"source ranges don't limit node ports", pod, "192.168.0.12:3001/tcp", "10.180.0.1:8080 10.180.2.1:8080 10.180.2.2:8080"},
		{"the Service's port at a node", pod, "192.168.0.12:80/tcp", "not ours"},
	}.run(t, table)
	tries{
		{"a Service without node ports", pod, "192.168.0.12:80/tcp", "not ours"},
	}.run(t, cluster3(append(webSlices(), service("web", "p:80/tcp", clusterIPs("172.30.0.41")))...))
	plain := tableOf(thisNode(), append(webSlices(), nodePort())...)
	plain.SetNodeAddrs("node2", ips("192.168.0.12"))
	tries{
		{"where other nodes are not served", pod, "192.168.0.12:3001/tcp", "not ours"},
	}.run(t, plain)
}

// A Service's own addresses and API servers are what they would be if the address were nobody's.
func TestNodePortsAtOtherNodesTakeNothing(t *testing.T) {
	others := []any{
		service("ext", "p:3001/tcp", clusterIPs("172.30.0.50"), externalIPs("192.168.0.12")), slice("x", "ext", "p:9090/tcp", "10.180.3.1"),
		service("vip", "p:80/tcp", clusterIPs("192.168.0.13")), slice("v", "vip", "p:9091/tcp", "10.180.3.2"),
		apiService(created(time.Unix(1000, 0))), apiSlice(),
	}
	table := cluster3(append(append(webSlices(), nodePort()), others...)...)
	tries{
		{"an external IP", pod, "192.168.0.12:3001/tcp", "10.180.3.1:9090"},
		{"a cluster IP's unserved port", pod, "192.168.0.13:3001/tcp", "rejected"},
	}.run(t, table)

	reserve := func(list ...string) {
		table.SetReserved(Reserved{Servers: backends(list...), Service: backends("172.30.0.1:443")})
	}
	reserve("203.0.113.12:3001", "192.168.0.99:3053")
	tries{
		{"an API server's port at a node", pod, "203.0.113.12:3001/tcp", "not ours"},
		{"of another family", pod, "[fd00:9::12]:3001/tcp", "[fd00:180::1]:8080 [fd00:180:2::1]:8080"},
		{"of another protocol", pod, "203.0.113.12:3053/udp", "10.180.0.1:5353 10.180.2.1:5353 10.180.2.2:5353"},
	}.run(t, table)
	if problems := table.Problems(named("web")); len(problems) != 1 || problems[0].Reason != AddressReserved || !strings.Contains(problems[0].Message, "API server on another node") {
		t.Errorf("problems %v", problems)
	}
	reserve("192.168.0.99:3001")
	tries{{"no node's API server", pod, "203.0.113.12:3001/tcp", "10.180.0.1:8080 10.180.2.1:8080 10.180.2.2:8080"}}.run(t, table)
	table.SetNodeAddrs("node4", ips("192.168.0.99"))
	tries{{"it became a node's", pod, "192.168.0.99:3001/tcp", "not ours"}, {"and elsewhere", pod, "203.0.113.12:3001/tcp", "not ours"}}.run(t, table)
	table.SetNodeAddrs("node4", nil)
	tries{{"the node went", pod, "203.0.113.12:3001/tcp", "10.180.0.1:8080 10.180.2.1:8080 10.180.2.2:8080"}}.run(t, table)
}

func TestNodePortsAtOtherNodesWithLocalPolicyTakeNoAPIServer(t *testing.T) {
	table := cluster3(append(webSlices(), nodePort(externalLocal), apiService(), apiSlice())...)
	table.SetReserved(Reserved{Servers: backends("192.168.0.12:3001"), Service: backends("172.30.0.1:443")})
	tries{
		{"an API server", pod, "192.168.0.12:3001/tcp", "not ours"},
		{"another address of the node", pod, "203.0.113.12:3001/tcp", "10.180.2.1:8080 10.180.2.2:8080"},
	}.run(t, table)
}

func TestSetNodeAddrsFollowsNodes(t *testing.T) {
	table := cluster3(append(webSlices(), nodePort(externalLocal))...)
	if c := table.SetNodeAddrs("node2", ips("192.168.0.12", "203.0.113.12", "fd00:9::12")); c != nil {
		t.Errorf("the same addresses change %v", c)
	}
	if c := table.SetNodeAddrs("node9", ips("192.168.0.19")); c != nil {
		t.Errorf("a node without endpoints changes %v", c)
	}
	table.SetNodeAddrs("node2", ips("192.168.0.22"))
	tries{
		{"a new address", pod, "192.168.0.22:3001/tcp", "10.180.2.1:8080 10.180.2.2:8080"},
		{"a former one", pod, "192.168.0.12:3001/tcp", "not ours"},
	}.run(t, table)
	table.SetSlice(slice("w4", "web", "p:8080/tcp d:5353/udp", "10.180.0.1 local", "10.180.2.1", "10.180.3.1 on=node3", "10.180.3.2 on=node3 terminating", "10.180.9.1 on=node9 terminating"))
	tries{
		{"an endpoint less", pod, "192.168.0.22:3001/tcp", "10.180.2.1:8080"},
		{"one on another node", pod, "192.168.0.13:3001/tcp", "10.180.3.1:8080"},
		{"the last is terminating", pod, "192.168.0.19:3053/udp", "10.180.9.1:5353"},
	}.run(t, table)
	table.SetNodeAddrs("node2", nil)
	tries{{"the node went", pod, "192.168.0.22:3001/tcp", "not ours"}}.run(t, table)
	if got, want := table.NodeAddrs(), ips("192.168.0.13", "192.168.0.19", "fd00:9::13"); !slices.Equal(got, want) {
		t.Errorf("addresses of nodes %v, want %v", got, want)
	}
	table.DeleteService(named("web"))
	table.DeleteSlice(named("w4"))
	table.DeleteSlice(named("w6"))
	if len(table.atNode)+len(table.entries)+len(table.claims.holder) != 0 {
		t.Errorf("%d, %d and %d entries are left", len(table.atNode), len(table.entries), len(table.claims.holder))
	}
}

// While one node takes another's place, both have its address.
func TestNodePortsAtAnAddressOfTwoNodes(t *testing.T) {
	table := cluster3(append(webSlices(), nodePort(externalLocal))...)
	table.SetNodeAddrs("node1", ips("192.168.0.12"))
	tries{{"one of them has endpoints", pod, "192.168.0.12:3001/tcp", "10.180.2.1:8080 10.180.2.2:8080"}}.run(t, table)
	table.SetSlice(slice("w4", "web", "p:8080/tcp d:5353/udp", "10.180.1.1 on=node1", "10.180.2.1"))
	tries{{"both have", pod, "192.168.0.12:3001/tcp", "10.180.1.1:8080"}, {"another address of the second", pod, "203.0.113.12:3001/tcp", "10.180.2.1:8080"}}.run(t, table)
	table.SetNodeAddrs("node1", nil)
	tries{{"the first went", pod, "192.168.0.12:3001/tcp", "10.180.2.1:8080"}}.run(t, table)
	if got := table.nodeAddrs[netip.MustParseAddr("192.168.0.12")]; got != 1 {
		t.Errorf("the address is counted %d times", got)
	}
}

func TestNodePortAtOtherNodesKeepsPolicy(t *testing.T) {
	table := cluster3(append(webSlices(), nodePort(externalLocal, ofType(corev1.ServiceTypeLoadBalancer), healthPort(32000), func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	}))...)
	ports := table.Desired(named("web"))
	n := 0
	for _, p := range ports {
		if p.Key.Node == "" {
			continue
		}
		n++
		if p.Affinity != defaultAffinity || p.Sticky != (p.Key.Proto == bpf.UDP) || p.LocalReady != 1 || p.ExternalLocal || p.VIPs != nil {
			t.Errorf("%v: %+v", p.Key, p)
		}
	}
	if h, ok := HealthOf(ports); !ok || h.Ready4 != 1 || h.Ready6 != 1 || n != 4 {
		t.Errorf("%d ports at nodes, health %+v", n, h)
	}
}

func TestSelectNode(t *testing.T) {
	node := ips("192.168.0.12", "10.9.0.12", "203.0.113.12", "fd00:9::12", "2001:db8::12", "127.0.0.1", "0.0.0.0", "169.254.1.1", "fe80::1", "224.0.0.1", "::ffff:192.168.0.13")
	for _, tc := range []struct{ values, want string }{
		{"", "10.9.0.12 169.254.1.1 192.168.0.12 192.168.0.13 203.0.113.12 2001:db8::12 fd00:9::12"},
		{"192.168.0.0/24", "192.168.0.12 192.168.0.13 2001:db8::12 fd00:9::12"},
		{"192.168.0.0/24,fd00::/8", "192.168.0.12 192.168.0.13 fd00:9::12"},
		{"198.51.100.0/24,2001:db8:9::/48", ""},
		{"primary", "192.168.0.12 fd00:9::12"},
		{"primary,10.9.0.0/16", "10.9.0.12 192.168.0.12 fd00:9::12"},
		{"localhost", ""},
	} {
		var values []string
		if tc.values != "" {
			values = strings.Split(tc.values, ",")
		}
		n, err := ParseNodePortAddresses(values)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range n.SelectNode(node) {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%q selects %v, want %s", tc.values, got, tc.want)
		}
	}
}

// A kubelet writes the addresses of its own Node: it must not fill the tables of all nodes.
func TestSelectNodeBoundsHowManyCount(t *testing.T) {
	var list []netip.Addr
	for i := range 1000 {
		a := netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})
		list = append(list, a, a)
	}
	if got := (NodePortAddresses{}).SelectNode(list); len(got) != maxNodeAddrs || got[0] != list[0] || got[maxNodeAddrs-1] != list[2*maxNodeAddrs-1] {
		t.Errorf("%d addresses: %v, want the first %d", len(got), got, maxNodeAddrs)
	}
}

func TestClusterIPOfTheHostIsLeft(t *testing.T) {
	node := thisNode()
	node.Interfaces = map[netip.Addr]string{}
	for _, a := range ips("172.30.0.10", "172.30.0.1") {
		node.Interfaces[a] = "nodelocaldns"
	}
	dns := service("dns", "d:53/udp d:53/tcp", clusterIPs("172.30.0.10", "fd00:30::10"), externalIPs("198.51.100.7"))
	s4, s6 := slice("d4", "dns", "d:53/udp d:53/tcp", "10.180.0.1"), slice("d6", "dns", "d:53/udp d:53/tcp", "fd00:180::1")
	table := tableOf(node, dns, s4, s6, apiService(), apiSlice())
	tries{
		{"UDP", pod, "172.30.0.10:53/udp", "not ours"},
		{"TCP", pod, "172.30.0.10:53/tcp", "not ours"},
		{"another port", pod, "172.30.0.10:8080/tcp", "not ours"},
		{"the other family", pod, "[fd00:30::10]:53/udp", "[fd00:180::1]:53"},
		{"its external IP", pod, "198.51.100.7:53/udp", "10.180.0.1:53"},
		{"the API service", pod, "172.30.0.1:443/tcp", "192.0.2.11:6443"},
		{"the API service's other ports", pod, "172.30.0.1:80/tcp", "rejected"},
	}.run(t, table)
	problems := table.Problems(named("dns"))
	want := `the cluster IP 172.30.0.10 is left to what listens there: it is an address of this host's interface "nodelocaldns"`
	if len(problems) != 1 || problems[0].Reason != LeftToHost || problems[0].Message != want {
		t.Errorf("problems %v", problems)
	}
	table.SetNode(thisNode())
	tries{
		{"the interface went", pod, "172.30.0.10:53/udp", "10.180.0.1:53"},
		{"another port", pod, "172.30.0.10:8080/tcp", "rejected"},
	}.run(t, table)
	if problems := table.Problems(named("dns")); len(problems) != 0 {
		t.Errorf("problems %v", problems)
	}
}
