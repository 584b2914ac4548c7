package services

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
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

// The fixture's node and clients.
const (
	pod     = "10.180.0.2"
	outside = "203.0.113.2"
	onNode  = "192.168.0.2"
)

func thisNode() Node {
	return Node{Name: "test-node", Zone: "zone-a", NodePortAddrs: ips("192.168.0.2", "fd00:9::2", "127.0.0.1", "::1")}
}

func ips(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func backends(list ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range list {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func named(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "ns", Name: name}
}

// service makes ns/name. Each port is "name:80/tcp" or, with a node port, "name:80/tcp@3001".
func service(name string, ports string, more ...func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	svc.Spec.Type = corev1.ServiceTypeClusterIP
	for _, s := range strings.Fields(ports) {
		svc.Spec.Ports = append(svc.Spec.Ports, servicePort(s))
	}
	for _, f := range more {
		f(svc)
	}
	return svc
}

func servicePort(s string) (p corev1.ServicePort) {
	name, rest, _ := strings.Cut(s, ":")
	rest, nodePort, hasNodePort := strings.Cut(rest, "@")
	number, proto, _ := strings.Cut(rest, "/")
	p.Name, p.Protocol, p.Port = name, corev1.Protocol(strings.ToUpper(proto)), atoi(number)
	if hasNodePort {
		p.NodePort = atoi(nodePort)
	}
	return p
}

func atoi(s string) int32 {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return int32(n)
}

func clusterIPs(list ...string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = list[0], list }
}

func externalIPs(list ...string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.ExternalIPs = list }
}

func loadBalancer(list ...string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		for _, ip := range list {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
	}
}

func ofType(t corev1.ServiceType) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Type = t }
}

func sourceRanges(list ...string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = list }
}

func internalLocal(s *corev1.Service) {
	s.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
}

func externalLocal(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func healthPort(n int32) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.HealthCheckNodePort = n }
}

func created(t time.Time) func(*corev1.Service) {
	return func(s *corev1.Service) { s.CreationTimestamp = metav1.NewTime(t) }
}

func svcLabel(k, v string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Labels = map[string]string{k: v} }
}

// slice makes a slice of the Service ns/svc, of the family of its first
// endpoint. Each port is "name:80/tcp", or "name" for a nil port; each endpoint
// is an address and words: local, remote (the default), notready, terminating
// (and not ready, but serving), gone (and not serving), "zone=a", "node=b" (hints), "on=node3".
func slice(name, svc, ports string, endpoints ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
	s.Namespace, s.Name, s.Labels = "ns", name, map[string]string{discoveryv1.LabelServiceName: svc}
	for _, p := range strings.Fields(ports) {
		if !strings.Contains(p, ":") {
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: new(p)})
			continue
		}
		sp := servicePort(p)
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: new(sp.Name), Protocol: new(sp.Protocol), Port: new(sp.Port)})
	}
	for _, text := range endpoints {
		ep := endpointOf(text)
		if strings.Contains(ep.Addresses[0], ":") {
			s.AddressType = discoveryv1.AddressTypeIPv6
		}
		s.Endpoints = append(s.Endpoints, ep)
	}
	return s
}

func endpointOf(text string) discoveryv1.Endpoint {
	words := strings.Fields(text)
	ep := discoveryv1.Endpoint{Addresses: words[:1], NodeName: new("node2")}
	hints := &discoveryv1.EndpointHints{}
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "local":
			ep.NodeName = new("test-node")
		case "remote":
		case "on":
			ep.NodeName = new(value)
		case "notready":
			ep.Conditions.Ready, ep.Conditions.Serving = new(false), new(false)
		case "terminating":
			ep.Conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)}
		case "gone":
			ep.Conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(false), Terminating: new(true)}
		case "zone":
			hints.ForZones = append(hints.ForZones, discoveryv1.ForZone{Name: "zone-" + value})
			ep.Hints = hints
		case "node":
			hints.ForNodes = append(hints.ForNodes, discoveryv1.ForNode{Name: value})
			ep.Hints = hints
		default:
			panic("what is " + w)
		}
	}
	return ep
}

func labelled(s *discoveryv1.EndpointSlice, k, v string) *discoveryv1.EndpointSlice {
	s.Labels[k] = v
	return s
}

// tableOf makes a table of Services and EndpointSlices, slices first: the order has no meaning.
func tableOf(node Node, objects ...any) *Table {
	t := NewTable(node)
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Service:
			t.SetService(o)
		case *discoveryv1.EndpointSlice:
			t.SetSlice(o)
		default:
			panic(fmt.Sprintf("what is %T", o))
		}
	}
	return t
}

// reach is what becomes of connections by a client to "ip:port/proto": the
// backends that it may get, or "rejected", "dropped" or "not ours".
func reach(t testing.TB, table *Table, from, to string) string {
	t.Helper()
	addr, p, _ := strings.Cut(to, "/")
	pr, err := bpf.ParseProto(p)
	if err != nil {
		t.Fatal(err)
	}
	dst := netip.MustParseAddrPort(addr)
	key := bpf.FrontendKeyOf(dst, pr)
	if dst.Addr().IsLoopback() || dst.Addr().IsUnspecified() {
		key = bpf.LoopbackKey(dst.Addr().Is4(), dst.Port(), pr)
	}
	client := netip.MustParseAddr(from)
	if isOutside(client) {
		got := judgeOutside(table, client, key)
		if written := verdictOf(write(t, table).LookupOutside(client, key)); written != got {
			t.Errorf("the table written says %s for %s from outside, the Ports say %s", written, to, got)
		}
		return got
	}
	got, known := judge(table, client, key)
	if known {
		if written := verdictOf(write(t, table).Lookup(key)); written != got {
			t.Errorf("the table written says %s for %s, the Ports say %s", written, to, got)
		}
	}
	return got
}

// isOutside reports whether a client is outside of the cluster: its packets come in by an uplink.
func isOutside(client netip.Addr) bool {
	return client == netip.MustParseAddr(outside) || netip.MustParsePrefix("2001:db8::/32").Contains(client)
}

// judgeOutside interprets a table's Ports as the packet path does.
func judgeOutside(table *Table, client netip.Addr, key bpf.FrontendKey) string {
	marked := false
	for _, ports := range table.All() {
		for _, p := range ports {
			marked = marked || slices.Contains(p.ExternalVIPs, key.AddrPort().Addr())
			flags := p.Flags[key]
			if flags&bpf.FrontendExternal == 0 {
				continue
			}
			limited := flags&(bpf.FrontendSourceRange|bpf.FrontendExternalRange) != 0
			if limited && !slices.ContainsFunc(p.SourceRanges, func(r netip.Prefix) bool { return r.Contains(client) }) {
				return "dropped"
			}
			if flags&bpf.FrontendExternalLocal != 0 {
				return choice(p.Local, len(p.Backends) > 0)
			}
			return choice(p.Backends, false)
		}
	}
	if marked {
		return "rejected"
	}
	return "not ours"
}

// judge interprets a table's Ports as connect time does. known: nat.State's Lookup
// knows as much, which is that of a client in the cluster that is allowed.
func judge(table *Table, client netip.Addr, key bpf.FrontendKey) (verdict string, known bool) {
	vip := false
	for _, ports := range table.All() {
		for _, p := range ports {
			vip = vip || slices.Contains(p.VIPs, key.AddrPort().Addr())
			i := slices.Index(p.Frontends, key)
			if i < 0 {
				continue
			}
			flags := p.Flags[key]
			if flags&bpf.FrontendSourceRange != 0 && !slices.ContainsFunc(p.SourceRanges, func(r netip.Prefix) bool { return r.Contains(client) }) {
				return "dropped", false
			}
			if flags&bpf.FrontendLocalPolicy != 0 {
				return choice(p.Local, len(p.Backends) > 0), true
			}
			return choice(p.Backends, false), true
		}
	}
	if vip {
		return "rejected", true
	}
	if a := key.AddrPort().Addr(); key.Nodes == 0 && table.nodeAddrs[a] > 0 {
		return judge(table, client, bpf.NodePortKey(a.Is4(), key.Port.Uint16(), key.Proto))
	}
	return "not ours", true
}

func choice(set []netip.AddrPort, elsewhere bool) string {
	switch {
	case len(set) > 0:
		return list(set)
	case elsewhere:
		return "dropped"
	}
	return "rejected"
}

func list(set []netip.AddrPort) string {
	var out []string
	for _, a := range set {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

// write gives what is written of a table by way of the planner.
func write(t testing.TB, table *Table) *nat.State {
	t.Helper()
	fake := nat.NewFake(4096)
	state, err := fake.Read()
	if err != nil {
		t.Fatal(err)
	}
	planner := nat.NewPlanner(state, nat.RuntimeIndexes)
	for _, ports := range table.All() {
		for _, p := range ports {
			if p.Starved() {
				continue
			}
			if err := planner.Ensure(p.Service); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := planner.SetNodes(table.NodeAddrs()); err != nil {
		t.Fatal(err)
	}
	applied, err := nat.Apply(fake, planner.Plan())
	if err != nil {
		t.Fatal(err)
	}
	if err := applied.Commit(); err != nil {
		t.Fatal(err)
	}
	if state, err = fake.Read(); err != nil {
		t.Fatal(err)
	}
	return state
}

func verdictOf(v nat.Verdict) string {
	switch v.Kind {
	case nat.Refused:
		return "rejected"
	case nat.Dropped:
		return "dropped"
	case nat.NotOurs:
		return "not ours"
	}
	slices.SortFunc(v.Backends, netip.AddrPort.Compare)
	return list(v.Backends)
}

// Desired are the Ports that a Service should have in the table, sorted.
func (t *Table) Desired(svc types.NamespacedName) []Port {
	if e := t.entries[svc]; e != nil {
		return e.wanted
	}
	return nil
}

// gone are the frontends that no Service wants after changes.
func gone(changes []Change) (out []bpf.FrontendKey) {
	kept := map[bpf.FrontendKey]bool{}
	for _, c := range changes {
		for i := range c.After {
			for _, k := range c.After[i].Frontends {
				kept[k] = true
			}
		}
	}
	for _, c := range changes {
		for i := range c.Before {
			for _, k := range c.Before[i].Frontends {
				if !kept[k] {
					out = append(out, k)
				}
			}
		}
	}
	return out
}

func (p Problem) String() string {
	if p.Port != "" {
		return fmt.Sprintf("%s %s port %s: %s", p.Kind, p.Object, p.Port, p.Message)
	}
	return fmt.Sprintf("%s %s: %s", p.Kind, p.Object, p.Message)
}
