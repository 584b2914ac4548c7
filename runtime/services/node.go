package services

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Node is what of this node decides where connections go.
type Node struct {
	Name string // endpoints with this node name are local
	Zone string // its label topology.kubernetes.io/zone; empty: none

	// NodePortAddrs are the addresses of the host that node ports are served on
	// (NodePortAddresses.Select). With any loopback address of a family in it, they
	// are served on all of that family's (bpf.LoopbackKey).
	NodePortAddrs []netip.Addr

	// Addrs are the addresses of the host, loopback ones excluded: external and load
	// balancer IPs among them are reported, and with DenyExternal not served.
	Addrs        []netip.Addr
	DenyExternal bool

	// Interfaces are the addresses of the host's own interfaces, with the interface's name: a
	// cluster IP among them is left to what listens there.
	Interfaces map[netip.Addr]string

	// ClusterIPsOutside lets clients outside the cluster use cluster IPs.
	ClusterIPsOutside bool

	// AtNodes says that node ports are served at the addresses of all nodes of the
	// cluster, and not only of this one.
	AtNodes bool
	// Nodes are such addresses, of each node by its name, without the host's own
	// (NodePortAddresses.SelectNode). A Table has its own (Table.SetNodeAddrs).
	Nodes map[string][]netip.Addr
}

// NodeIPs are the addresses of a Node object, internal ones first, in its
// order; the first of each family is the primary one
// (k8s.io/component-helpers/node/util.GetNodeHostIPs).
func NodeIPs(obj *corev1.Node) []netip.Addr {
	var out []netip.Addr
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for _, a := range obj.Status.Addresses {
			if ip, ok := parseAddr(a.Address); ok && a.Type == kind {
				out = append(out, ip)
			}
		}
	}
	return out
}

// normal is the node with its addresses sorted, each once.
func (n Node) normal() Node {
	n.NodePortAddrs = sortedAddrs(n.NodePortAddrs)
	n.Addrs = slices.DeleteFunc(sortedAddrs(n.Addrs), netip.Addr.IsLoopback)
	return n
}

// sortedAddrs are valid addresses, sorted, each once, without zones.
func sortedAddrs(list []netip.Addr) []netip.Addr {
	var addrs []netip.Addr
	for _, a := range list {
		if a = a.Unmap().WithZone(""); a.IsValid() {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

func (n Node) equal(o Node) bool {
	return n.Name == o.Name && n.Zone == o.Zone && slices.Equal(n.NodePortAddrs, o.NodePortAddrs) &&
		slices.Equal(n.Addrs, o.Addrs) && n.DenyExternal == o.DenyExternal && n.ClusterIPsOutside == o.ClusterIPsOutside && maps.Equal(n.Interfaces, o.Interfaces) && n.AtNodes == o.AtNodes
}

// has reports whether an address is one of the host's.
func (n *Node) has(a netip.Addr) bool {
	_, found := slices.BinarySearchFunc(n.Addrs, a, netip.Addr.Compare)
	return found
}

// owns reports whether an address is one of the host's in any way: its other ports are the host's, too.
func (n *Node) owns(a netip.Addr) bool {
	_, listed := n.Interfaces[a]
	return listed || n.has(a) || slices.Contains(n.NodePortAddrs, a)
}

// NodePortAddresses says which of the host's addresses node ports are served
// on. The zero value: all.
type NodePortAddresses struct {
	// Primary has the node's own addresses, the first of each family. With it, a
	// family without CIDRs has no other.
	Primary bool
	CIDRs   []netip.Prefix // addresses in them; a family with none: all of it
}

// Given reports whether not all addresses are served.
func (n NodePortAddresses) Given() bool { return n.Primary || len(n.CIDRs) > 0 }

// nodePortKeywords stand for CIDRs of both families (KEP-6032, kube-proxy 1.37).
var nodePortKeywords = map[string][]netip.Prefix{
	"localhost": {netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
	"all":       {netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
}

// ParseNodePortAddresses reads the values of --nodeport-addresses: CIDRs of
// either family and the keywords of kube-proxy 1.37, in any combination: primary,
// localhost, all. None: all addresses.
func ParseNodePortAddresses(values []string) (NodePortAddresses, error) {
	var out NodePortAddresses
	for _, v := range values {
		v = strings.TrimSpace(v)
		if v == "primary" {
			out.Primary = true
			continue
		}
		prefixes := nodePortKeywords[v]
		if prefixes == nil {
			p, ok := parsePrefix(v)
			if !ok {
				return NodePortAddresses{}, fmt.Errorf("read node port address %q: want a CIDR such as 192.0.2.0/24, primary, localhost or all", v)
			}
			prefixes = []netip.Prefix{p}
		}
		for _, p := range prefixes {
			if !slices.Contains(out.CIDRs, p) {
				out.CIDRs = append(out.CIDRs, p)
			}
		}
	}
	return out, nil
}

// Select picks from the host's addresses, loopback ones included, those that
// node ports are served on. nodeIPs are the node's own, the first of each family
// is its primary one; a family without one is not served with Primary.
//
// A CIDR of part of 127.0.0.0/8 stands for all of it, as in kube-proxy. IPv6
// link-local addresses count only where a CIDR of such is given: every device
// has one, those of pods too, and the same is on many nodes.
func (n NodePortAddresses) Select(hostAddrs, nodeIPs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range hostAddrs {
		a = a.Unmap().WithZone("")
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			continue
		}
		if n.Primary && a == primary(nodeIPs, a.Is4()) || n.selects(a) {
			out = append(out, a)
		}
	}
	return Node{NodePortAddrs: out}.normal().NodePortAddrs
}

// maxNodeAddrs is how many addresses of one Node object count. Each kubelet writes
// those of its own Node: one of them must not fill the tables of all nodes.
const maxNodeAddrs = 32

// SelectNode picks from the addresses of a Node object (NodeIPs) those at which
// node ports are served for clients of other nodes: by the same rules, but for
// what is no address of a single host, and the first 32 at most.
func (n NodePortAddresses) SelectNode(nodeIPs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range nodeIPs {
		a = a.Unmap().WithZone("")
		if !a.IsValid() || own(a) || linkLocal(a) && !n.selects(a) || slices.Contains(out, a) {
			continue
		}
		if n.Primary && a == primary(nodeIPs, a.Is4()) || n.selects(a) {
			if out = append(out, a); len(out) == maxNodeAddrs {
				break
			}
		}
	}
	return sortedAddrs(out)
}

func primary(nodeIPs []netip.Addr, is4 bool) netip.Addr {
	for _, a := range nodeIPs {
		if a = a.Unmap().WithZone(""); a.IsValid() && a.Is4() == is4 {
			if a.IsLoopback() {
				break // a node whose address isn't known
			}
			return a
		}
	}
	return netip.Addr{}
}

var loopback4 = netip.AddrFrom4([4]byte{127})

func (n NodePortAddresses) selects(a netip.Addr) bool {
	given := false
	for _, p := range n.CIDRs {
		if p.Addr().Is4() != a.Is4() {
			continue
		}
		given = true
		switch {
		case a.Is4() && a.IsLoopback():
			if p.Addr().IsLoopback() || p.Contains(loopback4) {
				return true
			}
		case a.Is6() && linkLocal(a):
			if linkLocal(p.Addr()) && p.Contains(a) {
				return true
			}
		case p.Contains(a):
			return true
		}
	}
	return !given && !n.Primary && (a.Is4() || !linkLocal(a))
}
