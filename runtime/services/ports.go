package services

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
)

// Ports is what a Service asks of this node's table: a Port for each of its
// ports and families, sorted by key; none for a Service that is not for us.
// endpointSlices are those of the Service, in any order; those not for us are
// ignored. Problems are what of the objects is ignored, and why. Objects of any
// content are taken. Neither the objects nor the node are changed.
func Ports(svc *corev1.Service, endpointSlices []*discoveryv1.EndpointSlice, node Node) ([]Port, []Problem) {
	n := node.normal()
	ports, _, problems := compile(svc, endpointSlices, &n)
	return ports, problems
}

// compile is Ports for a node that is normal already. nodes are those whose addresses it has asked for, sorted.
func compile(svc *corev1.Service, endpointSlices []*discoveryv1.EndpointSlice, node *Node) (out []Port, nodes []string, list []Problem) {
	if svc == nil || ignoredService(svc) {
		return nil, nil, nil
	}
	c := compiler{svc: svc, node: node}
	if len(svc.Spec.Ports) > 1 {
		c.have, c.seen = map[bpf.FrontendKey]string{}, map[portName]bool{}
	}
	c.policy = c.readPolicy()
	c.addrs = c.readAddresses()
	c.fams = families(endpointSlices, node, &c.problems)
	size := len(svc.Spec.Ports)
	if len(c.addrs[0].cluster) > 0 && len(c.addrs[1].cluster) > 0 {
		size *= 2
	}
	out = make([]Port, 0, size)
	for i := range svc.Spec.Ports {
		sp := &svc.Spec.Ports[i]
		pr, ok := c.checkPort(sp)
		if !ok {
			continue
		}
		for v6 := range c.addrs {
			if len(c.addrs[v6].cluster) == 0 && !c.addrs[v6].left {
				continue // the Service is not of this family, whatever other addresses it has
			}
			p := Port{Key: PortKey{Service: types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}, Name: sp.Name, Proto: pr, IPv6: v6 == 1}}
			eps := c.fams[v6].endpoints(sp.Name, pr)
			if c.fill(&p, sp, eps); len(p.Frontends) > 0 {
				out = append(out, p)
			}
			out = c.atNodes(out, p.Key, sp, eps)
		}
	}
	c.countLocal(out)
	slices.SortFunc(out, func(a, b Port) int { return a.Key.Compare(b.Key) })
	slices.Sort(c.nodes)
	return out, slices.Compact(c.nodes), c.list
}

// compiler is the state of one compile.
type compiler struct {
	problems
	svc    *corev1.Service
	node   *Node
	policy policy
	addrs  [2]addresses // IPv4, IPv6
	fams   [2]family
	have   map[bpf.FrontendKey]string // which port of the Service has a frontend; nil: there is one port
	seen   map[portName]bool          // likewise
	nodes  []string                   // whose addresses were asked for
}

// portName is what the ports of a Service and those of its slices meet by.
type portName struct {
	name  string
	proto bpf.Proto
}

func (c *compiler) note(reason Reason, format string, args ...any) {
	c.add("Service", c.svc, reason, format, args...)
}

// checkPort reports whether a port of the Service can be served, and its protocol.
func (c *compiler) checkPort(sp *corev1.ServicePort) (bpf.Proto, bool) {
	pr, ok := proto(sp.Protocol)
	if !ok {
		c.note(BadPort, "port %s is ignored: %s is not a protocol of Services", quote(sp.Name), quote(string(sp.Protocol)))
		return 0, false
	}
	if _, ok := port(sp.Port); !ok {
		c.note(BadPort, "port %s is ignored: %d is not a port number", quote(sp.Name), sp.Port)
		return 0, false
	}
	if c.seen[portName{sp.Name, pr}] {
		c.note(Duplicate, "port %d is ignored: another has its name %s", sp.Port, quote(sp.Name))
		return 0, false
	}
	if c.seen != nil {
		c.seen[portName{sp.Name, pr}] = true
	}
	return pr, true
}

// fill gives a port that has its key everything else.
func (c *compiler) fill(p *Port, sp *corev1.ServicePort, eps []endpoint) {
	internalLocal := c.policy.internalLocal
	if internalLocal || c.policy.externalLocal {
		p.Local = locals(eps)
	}
	if internalLocal && c.policy.neverEmpty && len(p.Local) == 0 {
		internalLocal = false
		c.note(PolicyIgnored, "internalTrafficPolicy Local is ignored for %s: no endpoint is on this node", p.Key)
	}
	c.addFrontends(p, sp, internalLocal)

	c.fillPolicy(p)
	p.Backends = cluster(eps)
	p.OnNode = onThisNode(eps, p.Backends, p.Local)
	p.keepServing(eps)
	p.ExternalLocal = c.policy.externalLocal
	p.derive()
	if p.Starved() {
		c.note(NoEndpoints, "no endpoint of %s is usable: the last known good ones stay", p.Key)
	}
}

// fillPolicy sets what all Ports of a Service have in common.
func (c *compiler) fillPolicy(p *Port) {
	p.Service.Name = p.Key.String()
	p.Sticky = p.Key.Proto == bpf.UDP
	p.Affinity = c.policy.affinity
	p.AllowEmpty = !c.policy.neverEmpty
	p.HealthCheckNodePort = c.policy.healthPort
}

func (p *Port) keepServing(eps []endpoint) {
	if p.Serving = stillServing(eps); slices.Equal(p.Serving, p.Backends) {
		p.Serving = p.Backends // one array in memory, not two
	}
}

// derive sets what follows from a port's frontends.
func (p *Port) derive() {
	p.VIPs = nil
	var all bpf.FrontendFlags
	for i, k := range p.Frontends {
		// External, load balancer and node addresses may have other uses than
		// this Service: for clients inside the cluster their other ports are left alone.
		if p.Kinds[i] == ClusterIP {
			p.VIPs = append(p.VIPs, k.Addr.Addr())
		}
		all |= p.Flags[k]
	}
	if all&(bpf.FrontendSourceRange|bpf.FrontendExternalRange) == 0 {
		p.SourceRanges = nil
	}
	p.ExternalLocal = p.ExternalLocal && (all&bpf.FrontendExternalLocal != 0 || slices.ContainsFunc(p.Kinds, Kind.External))
	if all&(bpf.FrontendLocalPolicy|bpf.FrontendExternalLocal) == 0 && !p.ExternalLocal {
		p.Local = nil
	}
}

// keep takes away the frontends that are not kept. It changes no list that p shares.
func (p *Port) keep(kept func(bpf.FrontendKey) bool) {
	keys, kinds, flags := p.Frontends, p.Kinds, p.Flags
	p.Frontends, p.Kinds, p.Flags = nil, nil, nil
	for i, k := range keys {
		if kept(k) {
			p.add(k, kinds[i], flags[k])
		}
	}
	p.ExternalVIPs = slices.DeleteFunc(slices.Clone(p.ExternalVIPs), func(a netip.Addr) bool {
		return !slices.ContainsFunc(p.Frontends, func(k bpf.FrontendKey) bool { return k.Addr.Addr() == a })
	})
	p.derive()
}

func (p *Port) add(key bpf.FrontendKey, kind Kind, flags bpf.FrontendFlags) {
	p.Frontends, p.Kinds = append(p.Frontends, key), append(p.Kinds, kind)
	if flags != 0 {
		p.setFlags(key, flags)
	}
}

func (p *Port) setFlags(key bpf.FrontendKey, flags bpf.FrontendFlags) {
	if p.Flags == nil {
		p.Flags = map[bpf.FrontendKey]bpf.FrontendFlags{}
	}
	p.Flags[key] = flags
}

// countLocal fills in LocalReady where health is asked for.
func (c *compiler) countLocal(out []Port) {
	if c.policy.healthPort == 0 {
		return
	}
	counts := [2]int{c.fams[0].localReady(), c.fams[1].localReady()}
	for i := range out {
		out[i].LocalReady = counts[out[i].Key.family()]
	}
}
