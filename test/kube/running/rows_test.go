package running

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
)

const (
	nodePort     = corev1.ServiceTypeNodePort
	loadBalancer = corev1.ServiceTypeLoadBalancer
	local        = corev1.ServiceExternalTrafficPolicyLocal
)

// everywhere gives a Service all the frontends that there are.
func everywhere(w *world) {
	w.svc.Spec.Type = loadBalancer
	w.svc.Spec.ExternalIPs = []string{"", ""}
}

// all are the frontends of everywhere, as pods and the node see them.
func all(want string) []look {
	var list []look
	for _, from := range []string{"pod", "node"} {
		for _, to := range []string{"cluster:80", "nodeport", "external:80", "lb:80"} {
			list = append(list, tcp(from, to, want))
		}
	}
	return append(list, tcp("node", "loopback", want))
}

func with(pods []endpoint, change func(e *endpoint)) []endpoint {
	for i := range pods {
		change(&pods[i])
	}
	return pods
}

func zoned(name, zone string) endpoint { return endpoint{pod: name, zones: []string{zone}} }

// proxyName is the label that hands an object to another proxy.
const proxyName = "service.kubernetes.io/service-proxy-name"

// rows are the cases of what a Service proxy must do. The node is in zone-a; p1 and p2 are on it.
func rows() []row {
	internalLocal := new(corev1.ServiceInternalTrafficPolicyLocal)
	cluster80 := func(want string) []look {
		return []look{tcp("pod", "cluster:80", want), tcp("node", "cluster:80", want)}
	}
	return []row{
		{"without endpoints every frontend refuses at once, and serves when there is one", []step{
			{everywhere, all(refused)},
			{func(w *world) { w.endpoints = ep("p3") }, all("p3:80")},
			{func(w *world) { w.endpoints = nil }, all(refused)},
		}},
		{"a pod reaches itself through its own Service", []step{
			{func(w *world) { w.endpoints = ep("p1") }, []look{tcp("p1", "cluster:80", "p1:80"), tcp("p2", "cluster:80", "p1:80")}},
		}},
		{"ports of several names and protocols lead to their own targets, and others are refused", []step{
			{func(w *world) {
				w.endpoints = ep("p1", "p3")
				w.svc.Spec.Ports = []corev1.ServicePort{
					sp("http", corev1.ProtocolTCP, 80, 80), sp("https", corev1.ProtocolTCP, 443, 843),
					sp("dns-udp", corev1.ProtocolUDP, 53, 53), sp("dns-tcp", corev1.ProtocolTCP, 53, 853),
					sp("dns-sctp", corev1.ProtocolSCTP, 53, 53),
				}
			}, []look{
				tcp("pod", "cluster:80", "p1:80 p3:80"), tcp("pod", "cluster:443", "p1:843 p3:843"),
				tcp("pod", "cluster:53", "p1:853 p3:853"), udp("pod", "cluster:53", "p1:53 p3:53"),
				udp("pod", "cluster:80", refused), tcp("pod", "cluster:444", refused), tcp("node", "cluster:81", refused),
			}},
		}},
		{"a UDP Service without endpoints leads nowhere, and refuses as the ICMP of kube-proxy does", []step{
			{func(w *world) { w.svc.Spec.Ports = []corev1.ServicePort{sp("dns", corev1.ProtocolUDP, 53, 53)} }, []look{
				udp("pod", "cluster:53", refused), {"pod", "udp-loose", "cluster:53", unserved}, {"node", "udp-loose", "cluster:53", unserved},
			}},
		}},
		{"a NodePort is served over UDP too, on the node's addresses and on loopback", []step{
			{func(w *world) {
				w.svc.Spec.Type = nodePort
				w.svc.Spec.Ports = []corev1.ServicePort{sp("dns", corev1.ProtocolUDP, 53, 53)}
				w.endpoints = ep("p1", "p2")
			}, []look{
				udp("pod", "nodeport", "p1:53 p2:53"), udp("node", "nodeport", "p1:53 p2:53"), udp("node", "loopback", "p1:53 p2:53"),
			}},
			{func(w *world) { w.endpoints = ep("p2") }, []look{
				{"node", "udp-loose", "loopback", "p2:53"}, {"pod", "udp-loose", "cluster:53", "p2:53"}, {"pod", "udp-loose", "nodeport", "p2:53"},
			}},
		}},
		{"a NodePort on a pod's own loopback is the pod's", []step{
			{func(w *world) { w.svc.Spec.Type = nodePort; w.endpoints = ep("p3") }, []look{
				tcp("node", "loopback", "p3:80"), tcp("pod", "loopback", refused),
			}},
		}},
		{"pods and the node reach every endpoint of a Service whose external policy is Local", []step{
			{func(w *world) { everywhere(w); w.svc.Spec.ExternalTrafficPolicy = local; w.endpoints = ep("p1", "p3") }, all("p1:80 p3:80")},
		}},
		{"a load balancer that is a proxy has no frontend here", []step{
			{func(w *world) {
				everywhere(w)
				w.svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IPMode: new(corev1.LoadBalancerIPModeProxy)}}
				w.endpoints = ep("p3")
			}, []look{tcp("pod", "lb:80", unserved), tcp("pod", "external:80", "p3:80")}},
		}},
		{"internal policy Cluster reaches all, Local the local ones, and is dropped without any", []step{
			{func(w *world) { w.endpoints = ep("p1", "p3", "p4") }, cluster80("p1:80 p3:80 p4:80")},
			{func(w *world) { w.svc.Spec.InternalTrafficPolicy = internalLocal }, cluster80("p1:80")},
			{func(w *world) { w.endpoints = ep("p1", "p2", "p4") }, cluster80("p1:80 p2:80")},
			{func(w *world) { w.endpoints = ep("p3", "p4") }, cluster80(dropped)},
			{func(w *world) { w.endpoints = nil }, cluster80(refused)},
		}},
		{"hints for zones choose this node's, until one endpoint has none", []step{
			{func(w *world) {
				w.endpoints = []endpoint{zoned("p3", "zone-a"), zoned("p4", "zone-b"), zoned("p5", "zone-c"), zoned("p6", "zone-a")}
			}, cluster80("p3:80 p6:80")},
			{func(w *world) { w.endpoints[1].zones = []string{"zone-b", "zone-a"} }, cluster80("p3:80 p4:80 p6:80")},
			{func(w *world) { w.endpoints[2].zones = nil }, cluster80("p3:80 p4:80 p5:80 p6:80")},
			{func(w *world) { w.endpoints = []endpoint{zoned("p3", "zone-b"), zoned("p4", "zone-c")} }, cluster80("p3:80 p4:80")},
		}},
		{"an endpoint of this zone that is not ready is left out, and hints with it when it is the only one", []step{
			{func(w *world) {
				w.endpoints = []endpoint{zoned("p3", "zone-a"), zoned("p4", "zone-b"), zoned("p5", "zone-a")}
				w.endpoints[0].state = "not ready"
			}, cluster80("p5:80")},
			{func(w *world) { w.endpoints[2].state = "not ready" }, cluster80("p4:80")},
		}},
		{"hints for nodes choose this node's, before those for zones, until one ready endpoint has none", []step{
			{func(w *world) {
				w.svc.Spec.TrafficDistribution = new(corev1.ServiceTrafficDistributionPreferSameNode)
				w.endpoints = []endpoint{
					{pod: "p1", nodes: []string{here}, zones: []string{ownZone}}, {pod: "p3", nodes: []string{there}, zones: []string{ownZone}},
					{pod: "p4", nodes: []string{there}, zones: []string{"zone-b"}},
				}
			}, cluster80("p1:80")},
			{func(w *world) { w.endpoints[1].nodes = []string{there, here} }, cluster80("p1:80 p3:80")},
			{func(w *world) { w.endpoints[1].nodes = []string{there}; w.endpoints[0].state = "not ready" }, cluster80("p3:80")},
			{func(w *world) { w.endpoints[0].state = ""; w.endpoints[2].nodes = nil }, cluster80("p1:80 p3:80")},
			{func(w *world) { w.endpoints[2].zones = nil }, cluster80("p1:80 p3:80 p4:80")},
			{func(w *world) { w.endpoints[2].state = "not ready" }, cluster80("p1:80")},
			{func(w *world) { w.endpoints = w.endpoints[1:]; w.endpoints[0].state = "terminating" }, cluster80("p3:80")},
		}},
		{"local endpoints under a Local policy are not filtered by hints", []step{
			{func(w *world) {
				w.svc.Spec.InternalTrafficPolicy = internalLocal
				w.endpoints = []endpoint{zoned("p1", "zone-a"), zoned("p2", "zone-b"), zoned("p3", "zone-a")}
			}, cluster80("p1:80 p2:80")},
		}},
		{"terminating endpoints that serve are used when no ready one is left", []step{
			{func(w *world) { w.endpoints = ep("p3", "p4", "p5"); w.endpoints[1].state = "terminating" }, cluster80("p3:80 p5:80")},
			{func(w *world) { w.endpoints[0].state = "terminating"; w.endpoints[2].state = "gone" }, cluster80("p3:80 p4:80")},
			{func(w *world) { w.endpoints = with(w.endpoints, func(e *endpoint) { e.state = "gone" }) }, cluster80(refused)},
			{func(w *world) { w.endpoints = with(w.endpoints, func(e *endpoint) { e.state = "not ready" }) }, cluster80(refused)},
			{func(w *world) { w.endpoints[0].state = "" }, cluster80("p3:80")},
		}},
		{"of the local endpoints under a Local policy, those that terminate serve when no other does", []step{
			{func(w *world) {
				w.svc.Spec.InternalTrafficPolicy = internalLocal
				w.endpoints = ep("p1", "p2", "p3")
				w.endpoints[0].state = "terminating"
			}, cluster80("p2:80")},
			{func(w *world) { w.endpoints[1].state = "gone" }, cluster80("p1:80")},
		}},
		{"an address that is ready in any slice is ready", []step{
			{func(w *world) {
				w.endpoints = append(ep("p3", "p4"), endpoint{pod: "p3", slice: "-b"}, endpoint{pod: "p5", slice: "-b"})
				w.endpoints[0].state = "not ready"
			}, cluster80("p3:80 p4:80 p5:80")},
		}},
		{"endpoints, ports and slices that come and go are noticed", []step{
			{func(w *world) { w.endpoints = ep("p3") }, cluster80("p3:80")},
			{func(w *world) { w.endpoints = ep("p3", "p4") }, cluster80("p3:80 p4:80")},
			{func(w *world) { w.endpoints = append(w.endpoints, endpoint{pod: "p5", slice: "-b"}) }, cluster80("p3:80 p4:80 p5:80")},
			{func(w *world) { w.endpoints = w.endpoints[2:] }, cluster80("p5:80")},
			{func(w *world) { w.endpoints = ep("p3"); w.svc.Spec.Ports[0].TargetPort = intOrString(81) }, cluster80("p3:81")},
			{func(w *world) { w.svc.Spec.Ports[0].Port = 8000 }, []look{tcp("pod", "cluster:8000", "p3:81"), tcp("pod", "cluster:80", refused)}},
			{func(w *world) {
				w.svc.Spec.Ports = append(w.svc.Spec.Ports, sp("more", corev1.ProtocolTCP, 80, 80))
			}, []look{tcp("pod", "cluster:8000", "p3:81"), tcp("pod", "cluster:80", "p3:80")}},
		}},
		{"a port that is renamed has no endpoints until the slices follow", []step{
			{func(w *world) { w.endpoints = ep("p3"); w.slicePorts = map[string]int32{"http/TCP": 80} }, cluster80("p3:80")},
			{func(w *world) { w.svc.Spec.Ports[0].Name = "web" }, cluster80(refused)},
			{func(w *world) { w.slicePorts = maps.Clone(w.slicePorts); w.slicePorts["web/TCP"] = 81 }, cluster80("p3:81")},
		}},
		{"a Service that is handed to another proxy is left alone, and taken back", []step{
			{func(w *world) { w.endpoints = ep("p3") }, cluster80("p3:80")},
			{func(w *world) { w.svc.Labels = map[string]string{proxyName: "other"} }, cluster80(unserved)},
			{func(w *world) { w.svc.Labels = nil }, cluster80("p3:80")},
		}},
		{"slices of another proxy, or of nobody, are no endpoints", []step{
			{func(w *world) { w.endpoints = ep("p3"); w.labels = map[string]string{proxyName: "other"} }, cluster80(refused)},
			{func(w *world) { w.labels = map[string]string{corev1.IsHeadlessService: ""} }, cluster80(refused)},
			{func(w *world) { w.labels = nil }, cluster80("p3:80")},
		}},
		{"a Service that changes its type has the frontends of the new one", []step{
			{func(w *world) {
				w.svc.Spec.Type = nodePort
				w.svc.Spec.Ports[0].NodePort = 30999
				w.endpoints = ep("p3")
			}, []look{
				tcp("node", "nodeport", "p3:80"), tcp("node", "loopback", "p3:80"), tcp("pod", "cluster:80", "p3:80")}},
			{func(w *world) {
				w.svc.Spec.Type = corev1.ServiceTypeClusterIP
				w.svc.Spec.Ports[0].NodePort = 0
			}, []look{tcp("node", "127.0.0.1:30999", refused), tcp("node", "192.168.0.21:30999", refused), tcp("pod", "cluster:80", "p3:80")}},
			{everywhere, all("p3:80")},
		}},
		{"a Service that is deleted is refused, as an address of the Service range that none has, and served again when it is back", []step{
			{func(w *world) { w.endpoints = ep("p3") }, cluster80("p3:80")},
			{func(w *world) { w.absent = true }, cluster80(refused)},
			{func(w *world) { w.absent = false }, cluster80("p3:80")},
		}},
	}
}
