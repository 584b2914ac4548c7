package sync

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/apihealth"
	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/watch"
)

// apiService is the one Service that must never be empty, and that leads to the
// API servers that are alive, not to all that are named.
type apiService struct {
	live      apihealth.Set    // what it leads to; empty: what its slices say
	unwritten bool             // live changed, and nothing was written since
	addrs     []netip.AddrPort // its addresses, before the API sends them
	ports     []services.Port  // as the API has it
	written   []services.Port  // as the writer has it
	servers   []netip.AddrPort // known API servers, which no other Service may claim
}

// Adopt takes, before Run, the addresses of the API service and what the table
// has for them: it stays until more is known.
func (l *Loop) Adopt(addrs, backends []netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.api.addrs = addrs
	for _, b := range backends {
		if b.Addr().Is4() {
			l.api.live.V4 = append(l.api.live.V4, b)
		} else {
			l.api.live.V6 = append(l.api.live.V6, b)
		}
	}
}

// SetLive takes which API servers are alive.
func (l *Loop) SetLive(set apihealth.Set) {
	l.update(func() {
		l.api.live, l.api.unwritten = set, true
		l.setAPI(l.api.ports)
		l.notify()
	})
}

// SetAPIServers takes the addresses of API servers.
func (l *Loop) SetAPIServers(addrs apihealth.Addresses) {
	l.update(func() {
		if !l.inputs.apiServers {
			l.inputs.apiServers = true
			l.notify()
		}
		l.api.servers, l.serviceRange.apiServers = addrs.Reserved, addrs.Anywhere
		l.rangeChanged()
		l.reserve()
	})
}

// redirect leads the API service to the API servers that are alive, before all
// inputs are known: these may come through it.
func (l *Loop) redirect(ctx context.Context) error {
	l.mu.Lock()
	live, addrs, unwritten := l.api.live, l.api.addrs, l.api.unwritten
	l.mu.Unlock()
	if !unwritten {
		return nil
	}
	if err := l.cfg.Writer.Redirect(ctx, addrs, without(slices.Concat(live.V4, live.V6), addrs)); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.api.live
	if l.api.unwritten = !slices.Equal(now.V4, live.V4) || !slices.Equal(now.V6, live.V6); l.api.unwritten {
		l.notify()
	}
	return nil
}

// setAPI leads the API service to the API servers that are alive: its slices
// name those that once were. That the Service is gone changes nothing: the API
// server creates it again at once, and the watch that says so comes through it.
func (l *Loop) setAPI(ports []services.Port) {
	if len(ports) == 0 {
		return
	}
	l.api.ports = ports
	var endpoints, addrs []netip.AddrPort
	for i := range ports {
		endpoints = append(endpoints, ports[i].Backends...)
		for _, k := range ports[i].Frontends {
			if !k.AtNodes() {
				addrs = append(addrs, k.AddrPort())
			}
		}
	}
	wanted := slices.Clone(ports)
	for i := range wanted {
		live := l.api.live.V4
		if ports[i].Key.IPv6 {
			live = l.api.live.V6
		}
		if live = without(live, addrs); len(live) > 0 && ports[i].Key.Proto == bpf.TCP {
			wanted[i].Backends, wanted[i].AllowEmpty = live, false
			liveOnly(&wanted[i])
		}
	}
	if len(endpoints) > 0 || l.inputs.has(watch.EndpointSlices) { // earlier, that there are none means nothing
		l.publish(APIServers{Endpoints: endpoints, Services: addrs})
	}
	if before := l.api.written; !services.EqualPorts(before, wanted) {
		l.api.written = wanted
		l.changes = append(l.changes, services.Change{Service: services.APIService, Before: before, After: wanted})
	}
}

// liveOnly takes dead API servers out of local traffic too. Where none of this
// node's is alive, its clients go where all others go. For clients outside of the
// cluster, at what externalTrafficPolicy Local is about, there is then none here.
func liveOnly(p *services.Port) {
	if p.Local == nil {
		return
	}
	p.Local = slices.DeleteFunc(slices.Clone(p.Local), func(a netip.AddrPort) bool { return !slices.Contains(p.Backends, a) })
	if len(p.Local) > 0 {
		return
	}
	p.Local, p.Flags = nil, maps.Clone(p.Flags)
	for k, flags := range p.Flags {
		if flags&bpf.FrontendLocalPolicy != 0 { // a cluster IP, where clients outside go by the same policy
			flags &^= bpf.FrontendLocalPolicy | bpf.FrontendExternalLocal
		}
		if p.Flags[k] = flags; flags&bpf.FrontendExternalLocal != 0 {
			p.Local = []netip.AddrPort{}
		}
	}
}

// reserve tells the table what no Service but the API service may have. The
// servers that the API names are known here first, so that they are reserved by
// the very write that leads to them.
func (l *Loop) reserve() {
	servers := slices.Clone(l.api.servers)
	for i := range l.api.ports {
		p := &l.api.ports[i]
		servers = slices.Concat(servers, p.Backends, p.Local, p.Serving)
	}
	for _, a := range slices.Clone(servers) {
		// One on this node listens on loopback addresses too, and its node may use them.
		if slices.Contains(l.node.hostIPs, a.Addr()) {
			servers = append(servers, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.Port()),
				netip.AddrPortFrom(netip.IPv6Loopback(), a.Port()))
		}
	}
	l.apply(l.setNode()) // which interfaces are the host's own depends on the API service's addresses
	addrs := l.apiAddrs()
	l.apply(l.table.SetReserved(services.Reserved{Servers: without(servers, addrs), Service: addrs}))
}

// APIAddrs are the addresses of the API service.
func (l *Loop) APIAddrs() []netip.AddrPort {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.apiAddrs()
}

func (l *Loop) apiAddrs() (out []netip.AddrPort) {
	if len(l.api.ports) == 0 {
		return slices.Clone(l.api.addrs)
	}
	for i := range l.api.ports {
		for j, k := range l.api.ports[i].Frontends {
			if l.api.ports[i].Kinds[j] == services.ClusterIP && k.Proto == bpf.TCP {
				out = append(out, k.AddrPort())
			}
		}
	}
	return out
}

// without leaves the API service's own addresses out of where it shall lead to: a
// kubeconfig may name one, and it answers until it leads to itself.
func without(endpoints, addrs []netip.AddrPort) []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(endpoints), func(a netip.AddrPort) bool { return slices.Contains(addrs, a) })
}
