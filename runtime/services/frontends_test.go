package services

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/firsthop/firsthop/bpf"
)

// frontends are those of a Service as text: "ip:port/proto kind", sorted.
func frontendsOf(t *testing.T, svc *corev1.Service) []string {
	t.Helper()
	var out []string
	ports, _ := Ports(svc, nil, thisNode())
	for _, p := range ports {
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
		for i, k := range p.Frontends {
			out = append(out, fmt.Sprintf("%v %v", k, p.Kinds[i]))
		}
	}
	slices.Sort(out)
	return out
}

func TestFrontends(t *testing.T) {
	proxied := func(s *corev1.Service) {
		for i := range s.Status.LoadBalancer.Ingress {
			s.Status.LoadBalancer.Ingress[i].IPMode = new(corev1.LoadBalancerIPModeProxy)
		}
	}
	for _, tc := range []struct {
		name string
		svc  *corev1.Service
		want []string
	}{
		{"headless", service("a", "http:80/tcp", clusterIPs("None")), nil},
		{"headless SCTP", service("a", "sip:80/sctp", clusterIPs("None")), nil},
		{"headless without port", service("a", "", clusterIPs("None")), nil},
		{"no cluster IP yet", service("a", "http:80/tcp"), nil},
		{"ExternalName", service("a", "http:80/tcp", ofType(corev1.ServiceTypeExternalName)), nil},
		{"ExternalName with a cluster IP", service("a", "http:80/tcp", clusterIPs("172.30.0.1"), ofType(corev1.ServiceTypeExternalName)), nil},
		{"for another proxy", service("a", "http:80/tcp", clusterIPs("172.30.0.1"), svcLabel(LabelProxyName, "")), nil},
		{"of which headless says nothing on a Service", service("a", "http:80/tcp", clusterIPs("172.30.0.1"), svcLabel(corev1.IsHeadlessService, "")),
			[]string{"tcp/172.30.0.1:80 cluster IP"}},
		{"without port", service("a", "", clusterIPs("172.30.0.1")), nil},
		{"a cluster IP with two UDP ports", service("a", "x:53/udp y:54/udp", clusterIPs("172.30.0.1")),
			[]string{"udp/172.30.0.1:53 cluster IP", "udp/172.30.0.1:54 cluster IP"}},
		{"one port under two protocols", service("a", "x:53/udp y:53/tcp", clusterIPs("172.30.0.1")),
			[]string{"tcp/172.30.0.1:53 cluster IP", "udp/172.30.0.1:53 cluster IP"}},
		{"two ports of no name under two protocols", service("a", ":53/udp :53/tcp", clusterIPs("172.30.0.1")),
			[]string{"tcp/172.30.0.1:53 cluster IP", "udp/172.30.0.1:53 cluster IP"}},
		{"only the field of one cluster IP", service("a", "http:80/tcp", func(s *corev1.Service) { s.Spec.ClusterIP = "172.30.0.1" }),
			[]string{"tcp/172.30.0.1:80 cluster IP"}},
		{"a node port", service("a", "http:80/tcp@3001", clusterIPs("172.30.0.1"), ofType(corev1.ServiceTypeNodePort)),
			[]string{"tcp/127.0.0.0:3001 node port", "tcp/172.30.0.1:80 cluster IP", "tcp/192.168.0.2:3001 node port"}},
		{"everything, in two families", service("a", "http:80/tcp@3001", clusterIPs("172.30.0.1", "fd00::1"),
			externalIPs("192.168.99.1", "2001:db8::1"), loadBalancer("1.2.3.4", "2001:db8::2")), []string{
			"tcp/127.0.0.0:3001 node port", "tcp/172.30.0.1:80 cluster IP", "tcp/192.168.0.2:3001 node port",
			"tcp/1.2.3.4:80 load balancer IP", "tcp/192.168.99.1:80 external IP",
			"tcp/[::7f00:0]:3001 node port", "tcp/[fd00::1]:80 cluster IP", "tcp/[fd00:9::2]:3001 node port",
			"tcp/[2001:db8::1]:80 external IP", "tcp/[2001:db8::2]:80 load balancer IP"}},
		{"addresses of a family that the Service is not of", service("a", "http:80/tcp", clusterIPs("172.30.0.1"), externalIPs("2001:db8::1")),
			[]string{"tcp/172.30.0.1:80 cluster IP"}},
		{"a load balancer that proxies", service("a", "http:80/tcp", clusterIPs("172.30.0.1"), loadBalancer("1.2.3.4"), proxied),
			[]string{"tcp/172.30.0.1:80 cluster IP"}},
		{"a load balancer with a name only", service("a", "http:80/tcp", clusterIPs("172.30.0.1"), loadBalancer("")),
			[]string{"tcp/172.30.0.1:80 cluster IP"}},
		{"an address of two kinds", service("a", "http:80/tcp", clusterIPs("172.30.0.1"), loadBalancer("1.2.3.4"), externalIPs("1.2.3.4", "172.30.0.1")),
			[]string{"tcp/1.2.3.4:80 load balancer IP", "tcp/172.30.0.1:80 cluster IP"}},
		{"an external IP twice", service("a", "http:80/tcp", clusterIPs("172.30.0.1"), externalIPs("1.2.3.4", "1.2.3.4", "001.2.3.4", "::ffff:1.2.3.4")),
			[]string{"tcp/1.2.3.4:80 external IP", "tcp/172.30.0.1:80 cluster IP"}},
		{"external IPs that are none", service("a", "http:80/tcp", clusterIPs("172.30.0.1"),
			externalIPs("", " ", "no", "127.0.0.1", "::1", "0.0.0.0", "fe80::1", "fe80::1%eth0", "169.254.169.254", "ff02::1", "1.2.3", "1.2.3.4/32")),
			[]string{"tcp/172.30.0.1:80 cluster IP"}},
		{"an external IP and port that is a node port of the Service", service("a", "http:3001/tcp@3001", clusterIPs("172.30.0.1"), externalIPs("192.168.0.2")),
			[]string{"tcp/127.0.0.0:3001 node port", "tcp/172.30.0.1:3001 cluster IP", "tcp/192.168.0.2:3001 external IP"}},
		{"no protocol is TCP", service("a", "http:80/", clusterIPs("172.30.0.1")), []string{"tcp/172.30.0.1:80 cluster IP"}},
		{"protocols and ports that are none", service("a", "a:80/dccp b:0/tcp c:65536/tcp d:-1/udp", clusterIPs("172.30.0.1")), nil},
		{"a node port that is none", service("a", "a:80/tcp@65536 b:81/tcp@-1", clusterIPs("172.30.0.1")),
			[]string{"tcp/172.30.0.1:80 cluster IP", "tcp/172.30.0.1:81 cluster IP"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			slices.Sort(tc.want)
			if got := frontendsOf(t, tc.svc); !slices.Equal(got, tc.want) {
				t.Errorf("frontends are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}

// What is not for us is no problem of ours.
func TestPortsOfIgnoredServices(t *testing.T) {
	for _, tc := range []struct {
		name string
		more func(*corev1.Service)
	}{
		{"headless", clusterIPs("None")},
		{"ExternalName", ofType(corev1.ServiceTypeExternalName)},
		{"for another proxy", svcLabel(LabelProxyName, "cilium")},
		{"without address yet", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "", nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			svc := service("a", "bad:0/tcp", clusterIPs("172.30.0.1"), externalIPs("bad"), tc.more)
			if ports, problems := Ports(svc, nil, thisNode()); len(ports)+len(problems) > 0 {
				t.Errorf("it has %v and the problems %v", ports, problems)
			}
		})
	}
}

func TestFrontendsOfTwoFamilies(t *testing.T) {
	table := tableOf(thisNode(),
		service("web", "http:80/tcp@3001", clusterIPs("172.30.0.41", "fd00::41"), externalIPs("192.168.99.11", "2001:db8::11"),
			loadBalancer("1.2.3.4", "2001:db8::4"), sourceRanges("203.0.113.0/24", "2001:db8:9::/48")),
		slice("1", "web", "http:80/tcp", "10.0.0.1"), slice("2", "web", "http:8080/tcp", "fd01::1", "fd01::2"))
	tries{
		{"IPv4", pod, "172.30.0.41:80/tcp", "10.0.0.1:80"},
		{"IPv6", pod, "[fd00::41]:80/tcp", "[fd01::1]:8080 [fd01::2]:8080"},
		{"IPv4 node port", pod, "192.168.0.2:3001/tcp", "10.0.0.1:80"},
		{"IPv6 node port", pod, "[fd00:9::2]:3001/tcp", "[fd01::1]:8080 [fd01::2]:8080"},
		{"IPv6 loopback", onNode, "[::1]:3001/tcp", "[fd01::1]:8080 [fd01::2]:8080"},
		{"IPv4 client that is allowed", outside, "1.2.3.4:80/tcp", "10.0.0.1:80"},
		{"IPv6 client that is allowed", "2001:db8:9::1", "[2001:db8::4]:80/tcp", "[fd01::1]:8080 [fd01::2]:8080"},
		{"IPv6 client that is not", "2001:db8:8::1", "[2001:db8::4]:80/tcp", "dropped"},
	}.run(t, table)
	table.DeleteSlice(named("1"))
	tries{
		{"no IPv4 endpoint", pod, "172.30.0.41:80/tcp", "rejected"},
		{"IPv6 has some", pod, "[fd00::41]:80/tcp", "[fd01::1]:8080 [fd01::2]:8080"},
	}.run(t, table)
}

func TestSourceRanges(t *testing.T) {
	endpoints := slice("1", "web", "http:80/tcp", "10.0.0.1")
	const in, no = "10.0.0.1:80", "dropped"
	for _, tc := range []struct {
		name     string
		ranges   []string
		outside  string // 203.0.113.2 by the load balancer
		pod      string // 10.180.0.2 by the load balancer
		problems int
	}{
		{"none", nil, in, in, 0},
		{"empty ones", []string{"", "  "}, in, in, 0},
		{"one of clients", []string{"203.0.113.0/24"}, in, no, 0},
		{"blanks around it", []string{" 203.0.113.0/24 ", "\t198.51.100.0/24"}, in, no, 0},
		{"not at its first address", []string{"203.0.113.7/24"}, in, no, 0},
		{"two that overlap", []string{"203.0.0.0/8", "203.0.113.0/24"}, in, no, 0},
		{"of pods only", []string{"10.0.0.0/8"}, no, in, 0},
		{"one for all", []string{"10.0.0.0/8", "0.0.0.0/0"}, in, in, 0},
		{"only of the other family", []string{"2001:db8::/32"}, in, in, 0},
		{"all of the other family", []string{"::/0", "10.0.0.0/8"}, no, in, 0},
		{"one that can't be read", []string{"203.0.113.0/33"}, no, no, 1},
		{"one that can't be read beside another", []string{"nobody", "10.0.0.0/8"}, no, in, 1},
		{"one that can't be read beside all", []string{"nobody", "0.0.0.0/0"}, in, in, 1},
		{"leading zeros", []string{"203.000.113.00/24"}, in, no, 0},
		{"IPv4 in IPv6 form", []string{"::ffff:203.0.113.0/120"}, in, no, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			svc := everyKind(sourceRanges(tc.ranges...))
			table := tableOf(thisNode(), svc, endpoints)
			tries{
				{"outside by the load balancer", outside, "1.2.3.4:80/tcp", tc.outside},
				{"a pod by the load balancer", pod, "1.2.3.4:80/tcp", tc.pod},
				{"outside by the node port", outside, "192.168.0.2:3001/tcp", in},
				{"outside by the external IP", outside, "192.168.99.11:80/tcp", tc.outside},
				{"a pod by the external IP", pod, "192.168.99.11:80/tcp", in},
				{"a pod by the cluster IP", pod, "172.30.0.41:80/tcp", in},
			}.run(t, table)
			tries{
				{"outside by the node port, which is limited too", outside, "192.168.0.2:3001/tcp", tc.outside},
				{"a pod by that", pod, "192.168.0.2:3001/tcp", in},
				{"the node by loopback", onNode, "127.0.0.1:3001/tcp", in},
			}.run(t, tableOf(thisNode(), everyKind(sourceRanges(tc.ranges...), nodePortRanges("true")), endpoints))
			if got := table.Problems(named("web")); len(got) != tc.problems {
				t.Errorf("problems: %v, want %d", got, tc.problems)
			}
			p := table.Desired(named("web"))[0]
			for k, flags := range p.Flags {
				if all := tc.outside == in && tc.pod == in; all && (flags != bpf.FrontendExternal || len(p.SourceRanges) > 0) {
					t.Errorf("a Service that allows all clients has flags %#x of %v and ranges %v", flags, k, p.SourceRanges)
				}
			}
		})
	}
	t.Run("an address that is an external IP, too, is limited", func(t *testing.T) {
		table := tableOf(thisNode(), everyKind(sourceRanges("10.0.0.0/8"), externalIPs("1.2.3.4")), endpoints)
		tries{{"outside", outside, "1.2.3.4:80/tcp", no}}.run(t, table)
	})
	t.Run("external IPs without a load balancer IP", func(t *testing.T) {
		table := tableOf(thisNode(), service("web", "http:80/tcp", clusterIPs("172.30.0.41"), externalIPs("1.2.3.4"), sourceRanges("10.0.0.0/8")), endpoints)
		tries{{"outside", outside, "1.2.3.4:80/tcp", no}, {"a pod", pod, "1.2.3.4:80/tcp", in}}.run(t, table)
		if p := table.Desired(named("web"))[0]; p.LimitsInside() || len(p.SourceRanges) != 1 {
			t.Errorf("it limits clients inside, or has not its ranges: %+v", p)
		}
	})
	t.Run("a cluster IP that is a load balancer IP, too", func(t *testing.T) {
		table := tableOf(thisNode(), everyKind(sourceRanges("10.0.0.0/8"), loadBalancer("172.30.0.41")), endpoints)
		tries{{"outside", outside, "172.30.0.41:80/tcp", no}, {"a pod elsewhere", "192.0.2.9", "172.30.0.41:80/tcp", in}}.run(t, table)
	})
	t.Run("no load balancer, no ranges", func(t *testing.T) {
		p, _ := Ports(service("web", "http:80/tcp", clusterIPs("172.30.0.41"), sourceRanges("10.0.0.0/8")), nil, thisNode())
		if len(p[0].SourceRanges) > 0 {
			t.Errorf("ranges are %v", p[0].SourceRanges)
		}
	})
}

func nodePortRanges(value string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations = map[string]string{NodePortRangesAnnotation: value} }
}

func TestPolicyNodePortRanges(t *testing.T) {
	endpoints := slice("1", "web", "http:80/tcp", "10.0.0.1")
	for value, limited := range map[string]bool{"true": true, " True ": true, "false": false, "": false, "yes": false} {
		table := tableOf(thisNode(), everyKind(sourceRanges("10.0.0.0/8"), nodePortRanges(value)), endpoints)
		want := "10.0.0.1:80"
		if limited {
			want = "dropped"
		}
		if got := reach(t, table, outside, "192.168.0.2:3001/tcp"); got != want {
			t.Errorf("%q: outside reaches %s, want %s", value, got, want)
		}
		problems := fmt.Sprint(table.Problems(named("web")))
		if bad := value == "yes"; bad != strings.Contains(problems, `the annotation firsthop.io/node-port-source-ranges is ignored: "yes" is neither true nor false`) || !bad && problems != "[]" {
			t.Errorf("%q: problems are %s", value, problems)
		}
	}
}

// Addresses that are marked for clients outside: their unserved ports are refused.
func TestExternalVIPs(t *testing.T) {
	endpoints := slice("1", "web", "http:80/tcp", "10.0.0.1")
	for _, tc := range []struct {
		name string
		node func(*Node)
		want string
	}{
		{"load balancer IPs, and no external ones", func(*Node) {}, "[1.2.3.4]"},
		{"one that a device of this node has", func(n *Node) { n.Addrs = ips("1.2.3.4") }, "[]"},
		{"one that node ports are served at", func(n *Node) { n.NodePortAddrs = append(n.NodePortAddrs, ips("1.2.3.4")...) }, "[]"},
		{"cluster IPs by a setting", func(n *Node) { n.ClusterIPsOutside = true }, "[172.30.0.41 1.2.3.4]"},
	} {
		node := thisNode()
		tc.node(&node)
		p := tableOf(node, everyKind(), endpoints).Desired(named("web"))[0]
		if got := fmt.Sprint(p.ExternalVIPs); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
		for _, k := range p.Frontends {
			reached := p.Flags[k]&bpf.FrontendExternal != 0
			if want := k.Addr.Addr() != netip.MustParseAddr("172.30.0.41") && k != bpf.LoopbackKey(true, 3001, bpf.TCP) || node.ClusterIPsOutside && k.Addr.Addr() == netip.MustParseAddr("172.30.0.41"); reached != want {
				t.Errorf("%s: outside reaches %v: %t, want %t", tc.name, k, reached, want)
			}
		}
	}
}

func TestExternalVIPsOfAPIServers(t *testing.T) {
	table := tableOf(thisNode(), everyKind(), slice("1", "web", "http:80/tcp", "10.0.0.1"))
	at := tries{{"a port that no Service has", outside, "1.2.3.4:6443/tcp", "rejected"}}
	at.run(t, table)
	table.SetReserved(Reserved{Servers: backends("1.2.3.4:6443")})
	tries{{"an API server", outside, "1.2.3.4:6443/tcp", "not ours"}, {"the Service", outside, "1.2.3.4:80/tcp", "10.0.0.1:80"}}.run(t, table)
	table.SetReserved(Reserved{})
	at.run(t, table)
}

// An address has a mark or has none, whichever of the Services there is written last.
func TestExternalVIPsOfSeveralServices(t *testing.T) {
	owner := service("owner", "p:443/tcp", clusterIPs("172.30.0.9"))
	guest := service("guest", "p:80/tcp", clusterIPs("172.30.0.10"), externalIPs("172.30.0.9"))
	other := service("other", "p:81/tcp", clusterIPs("172.30.0.11"), loadBalancer("172.30.0.9"))
	table := tableOf(thisNode(), owner, slice("o", "owner", "p:443/tcp", "10.0.0.1"), slice("g", "guest", "p:80/tcp", "10.0.0.2"))
	at := func(want string, names ...string) {
		t.Helper()
		for _, name := range names {
			if got := fmt.Sprint(table.Desired(named(name))[0].ExternalVIPs); got != want {
				t.Errorf("%s wants marks of %s, want %s", name, got, want)
			}
		}
	}
	at("[]", "owner")
	table.SetService(guest)
	at("[]", "owner", "guest")
	table.SetService(other)
	at("[172.30.0.9]", "owner", "guest", "other")
	tries{
		{"what is served", outside, "172.30.0.9:80/tcp", "10.0.0.2:80"},
		{"what is for inside", outside, "172.30.0.9:443/tcp", "rejected"},
		{"what is not served", outside, "172.30.0.9:444/tcp", "rejected"},
		{"inside", pod, "172.30.0.9:443/tcp", "10.0.0.1:443"},
	}.run(t, table)
	table.SetNodeAddrs("node2", ips("172.30.0.9"))
	at("[]", "owner", "guest", "other")
	table.SetNodeAddrs("node2", nil)
	at("[172.30.0.9]", "owner", "guest", "other")
	table.SetReserved(Reserved{Servers: backends("172.30.0.9:6443")})
	at("[]", "owner", "guest", "other")
	table.SetReserved(Reserved{})
	node := thisNode()
	node.Addrs = ips("172.30.0.9")
	table.SetNode(node)
	at("[]", "owner", "guest", "other")
	table.SetNode(thisNode())
	table.DeleteService(named("other"))
	at("[]", "owner", "guest")
	tries{{"what is for inside, of no load balancer", outside, "172.30.0.9:443/tcp", "not ours"}}.run(t, table)
}

func TestPolicyAffinity(t *testing.T) {
	clientIP := func(seconds *int32) func(*corev1.Service) {
		return func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: seconds}}
		}
	}
	for _, tc := range []struct {
		name     string
		more     func(*corev1.Service)
		want     time.Duration
		problems int
	}{
		{"none", func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityNone }, 0, 0},
		{"of a kind that nobody knows", func(s *corev1.Service) { s.Spec.SessionAffinity = "Cookie" }, 0, 0},
		{"a config without affinity", func(s *corev1.Service) { clientIP(new(int32(5)))(s); s.Spec.SessionAffinity = "" }, 0, 0},
		{"the default", func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }, 3 * time.Hour, 0},
		{"the default in a config", clientIP(nil), 3 * time.Hour, 0},
		{"a second", clientIP(new(int32(1))), time.Second, 0},
		{"a day", clientIP(new(int32(86400))), 24 * time.Hour, 0},
		{"longer than a day", clientIP(new(int32(86401))), 24 * time.Hour, 1},
		{"no time at all", clientIP(new(int32(0))), 3 * time.Hour, 1},
		{"less than that", clientIP(new(int32(-1))), 3 * time.Hour, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, problems := Ports(service("web", "http:80/tcp", clusterIPs("172.30.0.41"), tc.more), nil, thisNode())
			if p[0].Affinity != tc.want || len(problems) != tc.problems {
				t.Errorf("%v with %v, want %v with %d problems", p[0].Affinity, problems, tc.want, tc.problems)
			}
		})
	}
}

func TestPolicyNeverEmpty(t *testing.T) {
	api := service("kubernetes", "https:443/tcp", clusterIPs("172.30.0.1"), func(s *corev1.Service) { s.Namespace = "default" })
	ports, problems := Ports(api, nil, thisNode())
	if len(ports) != 1 || !ports[0].Starved() || ports[0].Validate() == nil {
		t.Errorf("without endpoints it is %+v, which the table takes", ports)
	}
	if len(problems) != 1 || problems[0].Reason != NoEndpoints {
		t.Errorf("problems: %v", problems)
	}
	if got := ports[0].Key.String(); got != "default/kubernetes:https (IPv4)" {
		t.Errorf("its name is %s", got)
	}

	internalLocal(api)
	remote := slice("kubernetes", "kubernetes", "https:6443/tcp", "10.0.0.1")
	remote.Namespace = "default"
	table := tableOf(thisNode(), api, remote)
	tries{{"under a Local policy without a local endpoint", pod, "172.30.0.1:443/tcp", "10.0.0.1:6443"}}.run(t, table)
	if got := table.Problems(APIService); len(got) != 1 || got[0].Reason != PolicyIgnored {
		t.Errorf("problems: %v", got)
	}

	same := service("kubernetes", "https:443/tcp", clusterIPs("172.30.0.2"))
	if ports, _ := Ports(same, nil, thisNode()); ports[0].Starved() {
		t.Error("a Service of its name in another namespace may not be empty")
	}
}

func TestProblems(t *testing.T) {
	bad := func(s *corev1.Service) { s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, "bad") }
	for _, tc := range []struct {
		name string
		svc  *corev1.Service
		want string
	}{
		{"a cluster IP", service("a", "http:80/tcp", clusterIPs("172.30.0.1"), bad),
			`Service ns/a: the cluster IP "bad" is ignored: it is not an IP address that can be served`},
		{"a port", service("a", "http:0/tcp", clusterIPs("172.30.0.1")), `Service ns/a: port "http" is ignored: 0 is not a port number`},
		{"a protocol", service("a", "http:1/dccp", clusterIPs("172.30.0.1")), `Service ns/a: port "http" is ignored: "DCCP" is not a protocol of Services`},
		{"a node port", service("a", "http:1/tcp@70000", clusterIPs("172.30.0.1")), `Service ns/a: the node port of port "http" is ignored: 70000 is not a port number`},
		{"a health check node port", service("a", "http:1/tcp", clusterIPs("172.30.0.1"), loadBalancer(), externalLocal, healthPort(-5)),
			`Service ns/a: the healthCheckNodePort is ignored: -5 is not a port number`},
		{"none", service("a", "http:1/tcp", clusterIPs("172.30.0.1"), loadBalancer(), externalLocal),
			`Service ns/a: it has no healthCheckNodePort: its load balancer can't learn which nodes have endpoints`},
		{"a port's name twice", service("a", "http:1/tcp http:2/tcp", clusterIPs("172.30.0.1")), `Service ns/a: port 2 is ignored: another has its name "http"`},
		{"a port twice", service("a", "http:1/tcp web:1/tcp", clusterIPs("172.30.0.1")), `Service ns/a: port "web" does not get tcp/172.30.0.1:1: port "http" has it`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, problems := Ports(tc.svc, nil, thisNode())
			if len(problems) != 1 || problems[0].String() != tc.want {
				t.Errorf("problems are %v, want %s", problems, tc.want)
			}
		})
	}
	t.Run("an address of two kinds is none", func(t *testing.T) {
		svc := service("a", "http:80/tcp", clusterIPs("172.30.0.1"), loadBalancer("1.2.3.4", "1.2.3.4"), externalIPs("1.2.3.4", ""))
		if _, problems := Ports(svc, nil, thisNode()); len(problems) > 0 {
			t.Errorf("problems are %v", problems)
		}
	})
	t.Run("of a slice", func(t *testing.T) {
		s := slice("a-1", "a", "http:80/tcp x:70000/tcp y:1/dccp nil", strings.Repeat("x", 100), "10.0.0.1", "127.0.0.1")
		_, problems := Ports(service("a", "http:1/tcp", clusterIPs("172.30.0.1")), []*discoveryv1.EndpointSlice{s}, thisNode())
		want := []string{
			`EndpointSlice ns/a-1: 2 of 3 endpoints are ignored: they have no IPv4 address that can be served, but "` + strings.Repeat("x", 60) + `…"`,
			`EndpointSlice ns/a-1: port "x" is ignored: 70000 is not a port number`,
			`EndpointSlice ns/a-1: port "y" is ignored: "DCCP" is not a protocol of Services`,
		}
		if got := fmt.Sprint(problems); got != fmt.Sprint(want) {
			t.Errorf("problems are\n%v\nwant\n%v", got, want)
		}
	})
}
