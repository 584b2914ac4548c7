package services

import (
	"cmp"
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/firsthop/firsthop/bpf"
)

// traits are what is known of an endpoint, seen from this node.
type traits uint8

const (
	ready traits = 1 << iota
	serving
	terminating
	local
	nodeHint        // has hints for nodes
	ourNode         // one of them is this node
	zoneHint        // has hints for zones
	ourZone         // one of them is this node's zone
	noTraits traits = 0
)

func (t traits) has(all traits) bool { return t&all == all }

// servesItsLast reports whether an endpoint is one to fall back on where none is ready.
func (t traits) servesItsLast() bool { return t.has(serving | terminating) }

// host is an endpoint of a slice; it is one of each of the slice's ports.
type host struct {
	addr netip.Addr
	traits
	node string
}

// endpoint is where a port's connections may go.
type endpoint struct {
	addr netip.AddrPort
	traits
	node string // that it is on; empty: nobody knows
}

// part is a slice of one family with its addresses read.
type part struct {
	ports []discoveryv1.EndpointPort
	hosts []host
}

// family are the parts of a Service in one family.
type family []part

// families reads the slices of a Service, IPv4 first.
func families(list []*discoveryv1.EndpointSlice, node *Node, probs *problems) (f [2]family) {
	for _, s := range list {
		if s == nil || ignoredSlice(s) {
			continue
		}
		v6 := 0
		switch s.AddressType {
		case discoveryv1.AddressTypeIPv4:
		case discoveryv1.AddressTypeIPv6:
			v6 = 1
		default:
			probs.add("EndpointSlice", s, BadSlice, "has the address type %s, which no service proxy serves", quote(string(s.AddressType)))
			continue
		}
		if f[v6] == nil {
			f[v6] = make(family, 0, len(list))
		}
		f[v6] = append(f[v6], part{ports: s.Ports, hosts: hostsOf(s, v6 == 0, node, probs)})
		checkPorts(s, probs)
	}
	return f
}

func hostsOf(s *discoveryv1.EndpointSlice, is4 bool, node *Node, probs *problems) []host {
	hosts := make([]host, 0, len(s.Endpoints))
	bad, first := 0, ""
	for i := range s.Endpoints {
		ep := &s.Endpoints[i]
		if len(ep.Addresses) == 0 {
			bad++
			continue
		}
		// All addresses of an endpoint are interchangeable; the first is used (KEP-752).
		a, ok := parseAddr(ep.Addresses[0])
		if !ok || a.Is4() != is4 || own(a) || linkLocal(a) {
			if bad++; first == "" {
				first = ep.Addresses[0]
			}
			continue
		}
		h := host{addr: a, traits: traitsOf(ep, node)}
		if ep.NodeName != nil {
			h.node = *ep.NodeName
		}
		hosts = append(hosts, h)
	}
	if bad > 0 {
		probs.add("EndpointSlice", s, BadAddress, "%d of %d endpoints are ignored: they have no %s address that can be served, but %s",
			bad, len(s.Endpoints), s.AddressType, quote(first))
	}
	return hosts
}

// traitsOf reads conditions as the API defines them: ready and serving are true
// where they are nil, terminating is false.
func traitsOf(ep *discoveryv1.Endpoint, node *Node) traits {
	t := noTraits
	if c := ep.Conditions.Ready; c == nil || *c {
		t |= ready
	}
	if c := ep.Conditions.Serving; c == nil || *c {
		t |= serving
	}
	if c := ep.Conditions.Terminating; c != nil && *c {
		t |= terminating
	}
	if ep.NodeName != nil && node.Name != "" && *ep.NodeName == node.Name {
		t |= local
	}
	if ep.Hints == nil {
		return t
	}
	if len(ep.Hints.ForNodes) > 0 {
		t |= nodeHint
	}
	for i := range ep.Hints.ForNodes {
		if ep.Hints.ForNodes[i].Name == node.Name {
			t |= ourNode
		}
	}
	if len(ep.Hints.ForZones) > 0 {
		t |= zoneHint
	}
	for i := range ep.Hints.ForZones {
		if ep.Hints.ForZones[i].Name == node.Zone {
			t |= ourZone
		}
	}
	return t
}

// checkPorts says which ports of a slice are ignored. One without a number is
// valid ("all ports"), but no service proxy can serve it.
func checkPorts(s *discoveryv1.EndpointSlice, probs *problems) {
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Name == nil || p.Port == nil {
			continue
		}
		if _, ok := port(*p.Port); !ok {
			probs.add("EndpointSlice", s, BadPort, "port %s is ignored: %d is not a port number", quote(*p.Name), *p.Port)
		} else if _, ok := protoOf(p); !ok {
			probs.add("EndpointSlice", s, BadPort, "port %s is ignored: %s is not a protocol of Services", quote(*p.Name), quote(string(*p.Protocol)))
		}
	}
}

func protoOf(p *discoveryv1.EndpointPort) (bpf.Proto, bool) {
	if p.Protocol == nil {
		return bpf.TCP, true
	}
	return proto(*p.Protocol)
}

// numberOf is the number of a slice's port; not ok where it isn't one to serve.
func numberOf(p *discoveryv1.EndpointPort) (uint16, bool) {
	if p.Name == nil || p.Port == nil {
		return 0, false
	}
	return port(*p.Port)
}

// endpoints joins the endpoints of a Service's port over all slices, by the
// port's name and protocol: sorted, each address and port once.
func (f family) endpoints(name string, pr bpf.Proto) []endpoint {
	n := 0
	for i := range f {
		n += len(f[i].hosts)
	}
	out := make([]endpoint, 0, n)
	for i := range f {
		for j := range f[i].ports {
			p := &f[i].ports[j]
			number, ok := numberOf(p)
			if !ok || *p.Name != name {
				continue
			}
			if got, ok := protoOf(p); !ok || got != pr {
				continue
			}
			for _, h := range f[i].hosts {
				out = append(out, endpoint{netip.AddrPortFrom(h.addr, number), h.traits, h.node})
			}
		}
	}
	if !slices.IsSortedFunc(out, compare) {
		slices.SortFunc(out, compare)
	}
	return slices.CompactFunc(out, func(a, b endpoint) bool { return a.addr == b.addr })
}

// compare orders by address, and puts that of several endpoints with one
// address first that is to be used: an endpoint that moves from one slice to
// another is for a while in both, and the address of a terminating pod may
// belong to another pod already. Whatever is left to tell two apart is no reason
// to prefer one, but the result must not depend on the order of slices.
func compare(a, b endpoint) int {
	if c := a.addr.Compare(b.addr); c != 0 || a.traits == b.traits && a.node == b.node {
		return c
	}
	return cmp.Or(
		cmp.Compare(a.traits&terminating, b.traits&terminating),
		cmp.Compare(b.traits&ready, a.traits&ready),
		cmp.Compare(b.traits&serving, a.traits&serving),
		cmp.Compare(b.traits&local, a.traits&local),
		cmp.Compare(b.traits, a.traits),
		cmp.Compare(a.node, b.node))
}
