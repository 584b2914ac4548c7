package services

import (
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/bpf"
)

// Node ports at the addresses of other nodes. With externalTrafficPolicy Cluster
// it makes no difference whose address a client takes: one frontend does for all
// (bpf.NodePortKey). With Local, a node serves its own endpoints only, and a node
// without any nothing: there such a connection is left alone, as it is not this
// node's to answer.

// atNodes adds to out a Port for each node that has endpoints of a node port with externalTrafficPolicy Local.
func (c *compiler) atNodes(out []Port, key PortKey, sp *corev1.ServicePort, eps []endpoint) []Port {
	number, ok := port(sp.NodePort)
	if !ok || !c.node.AtNodes || !c.policy.externalLocal || c.policy.neverEmpty {
		return out
	}
	nodes := map[string]bool{}
	for i := range eps {
		if eps[i].node != "" {
			nodes[eps[i].node] = true
		}
	}
	taken := map[netip.Addr]bool{} // two Nodes may have one address, as where one takes another's place
	for _, node := range slices.Sorted(maps.Keys(nodes)) {
		c.nodes = append(c.nodes, node)
		its := on(eps, node)
		p := Port{Key: key}
		p.Key.Node = node
		if p.Backends = locals(its); len(p.Backends) == 0 {
			continue
		}
		for _, a := range c.node.Nodes[node] {
			if a.Is6() == key.IPv6 && !taken[a] {
				taken[a] = true
				p.add(bpf.FrontendKeyOf(netip.AddrPortFrom(a, number), key.Proto), NodePort, 0)
			}
		}
		if len(p.Frontends) == 0 {
			continue
		}
		c.fillPolicy(&p)
		p.OnNode = onThisNode(eps, p.Backends)
		p.keepServing(its)
		out = append(out, p)
	}
	return out
}

// SetNodeAddrs takes the addresses of a node at which node ports are served, of
// any Node object of the cluster, without the host's own; none: the node went. The
// list is kept. It costs what the Services cost that have endpoints there behind a
// node port with externalTrafficPolicy Local.
func (t *Table) SetNodeAddrs(node string, addrs []netip.Addr) []Change {
	before := t.node.Nodes[node]
	if slices.Equal(before, addrs) {
		return nil
	}
	if len(addrs) == 0 {
		delete(t.node.Nodes, node)
	} else {
		t.node.Nodes[node] = addrs
	}
	for _, a := range before {
		if t.nodeAddrs[a]--; t.nodeAddrs[a] == 0 {
			delete(t.nodeAddrs, a)
		}
	}
	for _, a := range addrs {
		t.nodeAddrs[a]++
	}
	for _, a := range slices.Concat(before, addrs) { // no mark for clients outside where a node is
		if t.claims.outside[bpf.AddressOf(a)] > 0 {
			t.touchVIP(a)
		}
	}
	for e := range t.atNode[node] {
		t.recompile(e)
	}
	if slices.ContainsFunc(slices.Concat(before, addrs), t.claims.reserved.host) {
		t.reserveAtNodes()
	}
	return t.settle()
}

// NodeAddrs are all addresses of nodes at which node ports are served, sorted.
func (t *Table) NodeAddrs() []netip.Addr {
	return slices.SortedFunc(maps.Keys(t.nodeAddrs), netip.Addr.Compare)
}

// useNodes notes whose addresses an entry has asked for.
func (t *Table) useNodes(e *entry, nodes []string) {
	if slices.Equal(e.nodes, nodes) {
		return
	}
	for _, n := range e.nodes {
		if delete(t.atNode[n], e); len(t.atNode[n]) == 0 {
			delete(t.atNode, n)
		}
	}
	for _, n := range nodes {
		if t.atNode[n] == nil {
			t.atNode[n] = map[*entry]bool{}
		}
		t.atNode[n][e] = true
	}
	e.nodes = nodes
}

// reserveAtNodes works out which node ports would take a connection to an API
// server that is at the address of a node: they are served at this node's addresses only.
func (t *Table) reserveAtNodes() {
	before, now := t.claims.reserved.atNodes, map[bpf.FrontendKey]string{}
	for k := range t.claims.reserved.keys {
		if a := k.Addr.Addr(); t.claims.reserved.host(a) && t.nodeAddrs[a] > 0 {
			now[bpf.NodePortKey(a.Is4(), k.Port.Uint16(), k.Proto)] = "an API server on another node"
		}
	}
	t.claims.reserved.atNodes = now
	for _, keys := range []map[bpf.FrontendKey]string{before, now} {
		for k := range keys {
			if before[k] != now[k] {
				t.touchClaims(k)
			}
		}
	}
}

// touchClaims makes all dirty that claim a frontend.
func (t *Table) touchClaims(k bpf.FrontendKey) {
	if has, ok := t.claims.holder[k]; ok {
		t.dirty[has.by] = true
	}
	for _, rival := range t.claims.rivals[k] {
		t.dirty[rival.by] = true
	}
}
