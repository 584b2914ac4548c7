package services

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
)

// APIService is the Service that leads to the API servers.
var APIService = types.NamespacedName{Namespace: "default", Name: "kubernetes"}

// Kind is what makes an address and port a frontend.
type Kind uint8

// The kinds, in the order in which they appear in a Port. Where one address and
// port is several for one Service, it is the first.
const (
	ClusterIP Kind = iota + 1
	LoadBalancerIP
	ExternalIP
	NodePort
)

func (k Kind) String() string {
	switch k {
	case ClusterIP:
		return "cluster IP"
	case LoadBalancerIP:
		return "load balancer IP"
	case ExternalIP:
		return "external IP"
	case NodePort:
		return "node port"
	}
	return "no kind"
}

// External reports whether externalTrafficPolicy is about such a frontend.
func (k Kind) External() bool { return k != ClusterIP }

// PortKey names a Port for as long as it lives.
type PortKey struct {
	Service types.NamespacedName
	Name    string // of the port; empty where a Service has one only
	Proto   bpf.Proto
	IPv6    bool

	// Node is the node at whose addresses a node port with externalTrafficPolicy Local
	// leads to its endpoints; empty: the Port has everything else.
	Node string
}

// Compare orders by Service, name, protocol, IPv4 first, then by node.
func (k PortKey) Compare(o PortKey) int {
	if k.Service != o.Service { // mostly: the rest need not be compared then
		return CompareNames(k.Service, o.Service)
	}
	return cmp.Or(cmp.Compare(k.Name, o.Name), cmp.Compare(k.Proto, o.Proto), cmp.Compare(k.family(), o.family()), cmp.Compare(k.Node, o.Node))
}

func (k PortKey) String() string {
	s := k.Service.Namespace + "/" + k.Service.Name
	if k.Name != "" {
		s += ":" + k.Name
	}
	if k.Node != "" {
		s += " at node " + k.Node
	}
	if k.IPv6 {
		return s + " (IPv6)"
	}
	return s + " (IPv4)"
}

// Port is one port of a Service in one family. Clients inside of the cluster go by
// the internal policy: frontends of a Kind that is External lead them to cluster
// traffic, whatever the external policy. Flags say which frontends clients outside
// of the cluster may use, and which of these lead them to Local. All lists are sorted, so that equal Ports are equal byte by byte, and
// are shared: don't change them.
type Port struct {
	Key PortKey
	nat.Service
	Kinds []Kind // of Frontends, in their order

	// ExternalLocal says that clients outside of the cluster reach only Local by
	// frontends of a Kind that is External. Local empty and Backends not: they are dropped.
	ExternalLocal bool

	// Serving are all endpoints that still serve, wherever they are and whether
	// or not new connections get there. Flows to other addresses are stale.
	Serving []netip.AddrPort

	// HealthCheckNodePort is where the Service's health is asked for; 0: nowhere.
	HealthCheckNodePort uint16
	// LocalReady is how many addresses on this node are ready behind any port of
	// the Service, in this family. Counted where there is a HealthCheckNodePort.
	LocalReady int
}

// Starved reports whether nothing is left of a Service that must never be
// empty, the API service. Its Port then fails to Validate: the caller keeps
// what the table has, or what it has from elsewhere.
func (p *Port) Starved() bool { return len(p.Backends) == 0 && !p.AllowEmpty }

// NoLocal reports whether a Local policy leaves connections by a cluster IP
// (internal), or those from outside of the cluster (external), without an
// endpoint on this node while there are some elsewhere. It is what kube-proxy
// counts in sync_proxy_rules_no_local_endpoints_total.
func (p *Port) NoLocal() (internal, external bool) {
	if len(p.Local) > 0 || len(p.Backends) == 0 && len(p.Serving) == 0 {
		return false, false
	}
	for i, k := range p.Kinds {
		internal = internal || k == ClusterIP && p.Flags[p.Frontends[i]]&bpf.FrontendLocalPolicy != 0
	}
	return internal, p.ExternalLocal
}

// LimitsInside reports whether source ranges allow some clients inside of the cluster, and not others.
func (p *Port) LimitsInside() bool {
	if len(p.SourceRanges) == 0 {
		return false
	}
	for _, flags := range p.Flags {
		if flags&bpf.FrontendSourceRange != 0 {
			return true
		}
	}
	return false
}

// Equal reports whether two Ports ask for the same.
func (p *Port) Equal(o *Port) bool {
	return p.Key == o.Key && p.Name == o.Name &&
		slices.Equal(p.Frontends, o.Frontends) && slices.Equal(p.Kinds, o.Kinds) && slices.Equal(p.VIPs, o.VIPs) && slices.Equal(p.ExternalVIPs, o.ExternalVIPs) &&
		maps.Equal(p.Flags, o.Flags) && slices.Equal(p.SourceRanges, o.SourceRanges) &&
		slices.Equal(p.Backends, o.Backends) && slices.Equal(p.Serving, o.Serving) && slices.Equal(p.OnNode, o.OnNode) &&
		(p.Local == nil) == (o.Local == nil) && slices.Equal(p.Local, o.Local) &&
		p.Sticky == o.Sticky && p.Affinity == o.Affinity && p.AllowEmpty == o.AllowEmpty &&
		p.ExternalLocal == o.ExternalLocal && p.HealthCheckNodePort == o.HealthCheckNodePort && p.LocalReady == o.LocalReady
}

// EqualPorts reports whether two lists of Ports ask for the same.
func EqualPorts(a, b []Port) bool {
	if len(a) > 0 && len(a) == len(b) && &a[0] == &b[0] {
		return true
	}
	return slices.EqualFunc(a, b, func(x, y Port) bool { return x.Equal(&y) })
}
