package services

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/firsthop/firsthop/bpf"
)

// addresses are those of a Service in one family.
type addresses struct {
	cluster, balancer, external []netip.Addr   // sorted, each once
	ranges                      []netip.Prefix // clients of balancer, and of what else is limited: see kindFlags
	limited                     bool           // only ranges are allowed
	left                        bool           // a cluster IP is left to the host
}

// familyOf is the place of an address's family in a pair.
func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// family is the place of the key's family in a pair.
func (k PortKey) family() int {
	if k.IPv6 {
		return 1
	}
	return 0
}

// readAddresses reads the Service's addresses of both families.
func (c *compiler) readAddresses() (out [2]addresses) {
	ips := c.svc.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{c.svc.Spec.ClusterIP}
	}
	for _, s := range ips {
		if a, ok := c.readAddress(s, ClusterIP); ok && !c.leave(a, &out[familyOf(a)]) {
			out[familyOf(a)].cluster = append(out[familyOf(a)].cluster, a)
		}
	}
	for _, s := range c.svc.Spec.ExternalIPs {
		if a, ok := c.readAddress(s, ExternalIP); ok {
			out[familyOf(a)].external = append(out[familyOf(a)].external, a)
		}
	}
	for i := range c.svc.Status.LoadBalancer.Ingress {
		in := &c.svc.Status.LoadBalancer.Ingress[i]
		if in.IPMode != nil && *in.IPMode != corev1.LoadBalancerIPModeVIP {
			continue // the load balancer speaks to node ports or pods by itself (KEP-1860)
		}
		if a, ok := c.readAddress(in.IP, LoadBalancerIP); ok {
			out[familyOf(a)].balancer = append(out[familyOf(a)].balancer, a)
		}
	}
	c.readRanges(&out)
	for i := range out {
		for _, l := range []*[]netip.Addr{&out[i].cluster, &out[i].balancer, &out[i].external} {
			slices.SortFunc(*l, netip.Addr.Compare)
			*l = slices.Compact(*l)
		}
	}
	return out
}

// readAddress reads an address for frontends; an empty one is none.
func (c *compiler) readAddress(s string, kind Kind) (netip.Addr, bool) {
	if strings.TrimSpace(s) == "" {
		return netip.Addr{}, false
	}
	a, ok := parseAddr(s)
	if !ok || own(a) || kind == ExternalIP && linkLocal(a) {
		c.note(BadAddress, "the %v %s is ignored: it is not an IP address that can be served", kind, quote(s))
		return netip.Addr{}, false
	}
	if kind != ClusterIP && c.node.has(a) {
		if c.node.DenyExternal {
			c.note(NodeAddress, "the %v %s is not served: it is an address of this node, and --deny-node-external-ips is set", kind, a)
			return netip.Addr{}, false
		}
		c.note(NodeAddress, "the %v %s is an address of this node: the Service takes connections that the node's own ports would get", kind, a)
	}
	return a, true
}

// leave reports whether a cluster IP is left to what listens there, as NodeLocal
// DNSCache does at that of the cluster's DNS (KEP-1024). That of the API service never is.
func (c *compiler) leave(a netip.Addr, of *addresses) bool {
	device, its := c.node.Interfaces[a]
	if !its || c.policy.neverEmpty {
		return false
	}
	of.left = true
	c.note(LeftToHost, "the cluster IP %s is left to what listens there: it is an address of this host's interface %s", a, quote(device))
	return true
}

// readRanges reads loadBalancerSourceRanges. One that allows everybody of its
// family counts as none.
func (c *compiler) readRanges(out *[2]addresses) {
	var everybody [2]bool
	for _, s := range c.svc.Spec.LoadBalancerSourceRanges {
		if strings.TrimSpace(s) == "" {
			continue
		}
		p, ok := parsePrefix(s)
		if !ok {
			c.note(BadSourceRange, "the source range %s allows nobody: it is not a CIDR", quote(s))
			out[0].limited, out[1].limited = true, true
			continue
		}
		i := familyOf(p.Addr())
		out[i].limited = true
		out[i].ranges = append(out[i].ranges, p)
		everybody[i] = everybody[i] || p.Bits() == 0
	}
	for i := range out {
		if everybody[i] {
			out[i].limited, out[i].ranges = false, nil
		}
		slices.SortFunc(out[i].ranges, func(a, b netip.Prefix) int {
			return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
		})
		out[i].ranges = slices.Compact(out[i].ranges)
	}
}

// addFrontends gives a port its frontends, in the order of their kinds.
func (c *compiler) addFrontends(p *Port, sp *corev1.ServicePort, internalLocal bool) {
	a, number := &c.addrs[p.Key.family()], uint16(sp.Port)
	flags := c.flagsOfKinds(a.limited, internalLocal)
	p.Frontends = make([]bpf.FrontendKey, 0, len(a.cluster)+len(a.balancer)+len(a.external)+c.nodePortAddrs(p, sp))
	p.Kinds = make([]Kind, 0, cap(p.Frontends))
	for _, ip := range a.cluster {
		c.addFrontend(p, bpf.FrontendKeyOf(netip.AddrPortFrom(ip, number), p.Key.Proto), ClusterIP, flags.cluster)
	}
	for _, ip := range a.balancer {
		c.addFrontend(p, bpf.FrontendKeyOf(netip.AddrPortFrom(ip, number), p.Key.Proto), LoadBalancerIP, flags.balancer)
	}
	for _, ip := range a.external {
		c.addFrontend(p, bpf.FrontendKeyOf(netip.AddrPortFrom(ip, number), p.Key.Proto), ExternalIP, flags.external)
	}
	if a.limited {
		p.SourceRanges = a.ranges
	}
	if sp.NodePort != 0 {
		c.addNodePort(p, sp, flags.nodePort)
	}
	p.ExternalVIPs = c.externalVIPs(p)
}

// kindFlags are the flags of a port's frontends, by their kind.
type kindFlags struct{ cluster, balancer, external, nodePort bpf.FrontendFlags }

// flagsOfKinds says who may use a port's frontends, and how. Clients outside the cluster go by the external policy, at
// cluster IPs by the internal one, as under kube-proxy. Source ranges are for load balancer IPs, wherever a client is;
// for external IPs and, by annotation, node ports they are for clients outside.
func (c *compiler) flagsOfKinds(limited, internalLocal bool) (f kindFlags) {
	outside := bpf.FrontendExternal
	if c.policy.externalLocal {
		outside |= bpf.FrontendExternalLocal
	}
	f.balancer, f.external, f.nodePort = outside, outside, outside
	if limited {
		f.balancer |= bpf.FrontendSourceRange
		f.external |= bpf.FrontendExternalRange
	}
	if limited && c.policy.nodePortRanges {
		f.nodePort |= bpf.FrontendExternalRange
	}
	if internalLocal {
		f.cluster = bpf.FrontendLocalPolicy
	}
	if c.node.ClusterIPsOutside {
		f.cluster |= bpf.FrontendExternal
		if internalLocal {
			f.cluster |= bpf.FrontendExternalLocal
		}
	}
	return f
}

// externalVIPs are the addresses of a port whose unserved ports are refused to clients outside. Those of this node
// belong to the node itself: one that node ports are served at keeps its other ports. So does an external IP anywhere:
// who may write a Service may write any address there, as that of somebody else's pod, and kube-proxy takes one port of it only.
func (c *compiler) externalVIPs(p *Port) (out []netip.Addr) {
	for i, k := range p.Frontends {
		if a := k.Addr.Addr(); p.Flags[k]&bpf.FrontendExternal != 0 && p.Kinds[i] != ExternalIP && !c.node.owns(a) {
			out = append(out, a)
		}
	}
	return out
}

// nodePortAddrs is on how many addresses a port's node port is served.
func (c *compiler) nodePortAddrs(p *Port, sp *corev1.ServicePort) int {
	n := 0
	for _, ip := range c.node.NodePortAddrs {
		if sp.NodePort != 0 && ip.Is6() == p.Key.IPv6 {
			n++
		}
	}
	return n
}

// addNodePort adds the frontends of a node port. Clients outside use those at addresses of this node: loopback ones are
// out of their reach, and those of other nodes are for these to serve.
func (c *compiler) addNodePort(p *Port, sp *corev1.ServicePort, flags bpf.FrontendFlags) {
	number, ok := port(sp.NodePort)
	if !ok {
		c.note(BadPort, "the node port of port %s is ignored: %d is not a port number", quote(sp.Name), sp.NodePort)
		return
	}
	for _, ip := range c.node.NodePortAddrs {
		switch {
		case ip.Is6() != p.Key.IPv6:
		case ip.IsLoopback():
			c.addFrontend(p, bpf.LoopbackKey(ip.Is4(), number, p.Key.Proto), NodePort, 0)
		default:
			c.addFrontend(p, bpf.FrontendKeyOf(netip.AddrPortFrom(ip, number), p.Key.Proto), NodePort, flags)
		}
	}
	if c.node.AtNodes && !c.policy.externalLocal {
		c.addFrontend(p, bpf.NodePortKey(!p.Key.IPv6, number, p.Key.Proto), NodePort, 0)
	}
}

func (c *compiler) addFrontend(p *Port, key bpf.FrontendKey, kind Kind, flags bpf.FrontendFlags) {
	if other, ok := c.have[key]; ok {
		if other != p.Key.Name { // else it is of an earlier kind
			c.note(Duplicate, "port %s does not get %v: port %s has it", quote(p.Key.Name), key, quote(other))
		} else {
			p.serveOutside(key, flags)
		}
		return
	}
	if c.have != nil {
		c.have[key] = p.Key.Name
	} else if slices.Contains(p.Frontends, key) {
		p.serveOutside(key, flags)
		return
	}
	p.add(key, kind, flags)
}

// serveOutside lets clients outside use a frontend of an earlier kind by the flags of another kind, unless they may do so
// already: a cluster IP that is an external IP of its Service too is one.
func (p *Port) serveOutside(key bpf.FrontendKey, flags bpf.FrontendFlags) {
	const outside = bpf.FrontendExternal | bpf.FrontendExternalLocal | bpf.FrontendExternalRange
	if p.Flags[key]&bpf.FrontendExternal != 0 || flags&bpf.FrontendExternal == 0 {
		return
	}
	if flags&bpf.FrontendSourceRange != 0 {
		flags |= bpf.FrontendExternalRange
	}
	p.setFlags(key, p.Flags[key]|flags&outside)
}
