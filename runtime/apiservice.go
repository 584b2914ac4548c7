package runtime

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

// The part of the engine that is about the API service: the one that must never be
// empty, and that leads to API servers that live and not merely to those that are named.

// adopt takes what the API service leads to already, until more is known.
func (e *engine) adopt(backends []netip.AddrPort) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range backends {
		if b.Addr().Is4() {
			e.live.V4 = append(e.live.V4, b)
		} else {
			e.live.V6 = append(e.live.V6, b)
		}
	}
}

// setLive takes which API servers are alive.
func (e *engine) setLive(set apihealth.Set) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.live, e.unheard = set, true
	e.tellAPI(e.api)
	e.poke()
}

// redirect leads the API service to the API servers that live, before all
// inputs are known: it may be what they wait for.
func (e *engine) redirect(ctx context.Context) error {
	e.mu.Lock()
	live, vips, unheard := e.live, e.vips, e.unheard
	e.mu.Unlock()
	if !unheard {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	if err := e.writer.Redirect(ctx, vips, without(slices.Concat(live.V4, live.V6), vips)); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unheard = !slices.Equal(e.live.V4, live.V4) || !slices.Equal(e.live.V6, live.V6)
	if e.unheard {
		e.poke()
	}
	return nil
}

// tellAPI hands the API service to the writer: with the API servers that live,
// as its slices name those that once did. The Service going away is no news:
// it is brought back by the API server at once, and who would tell us?
func (e *engine) tellAPI(ports []services.Port) {
	if len(ports) == 0 {
		return
	}
	e.api = ports
	var endpoints, vips []netip.AddrPort
	told := slices.Clone(ports)
	for i := range ports {
		endpoints = append(endpoints, ports[i].Backends...)
		for _, k := range ports[i].Frontends {
			vips = append(vips, k.AddrPort())
		}
	}
	for i := range told {
		live := e.live.V4
		if ports[i].Key.IPv6 {
			live = e.live.V6
		}
		live = without(live, vips)
		if len(live) > 0 && ports[i].Key.Proto == bpf.TCP {
			told[i].Backends = live
			told[i].AllowEmpty = false
			liveOnly(&told[i])
		}
	}
	if len(endpoints) > 0 || !e.synced[watch.EndpointSlices].IsZero() { // before, it is no news that there are none
		e.apiEndpoints(endpoints, vips)
	}
	if services.EqualPorts(e.apiTold, told) {
		return
	}
	before := e.apiTold
	e.apiTold = told
	e.set(services.Change{Service: services.APIService, Before: before, After: told})
}

// liveOnly takes dead API servers out of local traffic too. Where none of this
// node's lives, its clients go where all others go.
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
		p.Flags[k] = flags &^ bpf.FrontendLocal
	}
}

// without leaves the API service's own addresses out of where it shall lead to: a
// kubeconfig may name one, and it answers until it leads to itself.
func without(endpoints, vips []netip.AddrPort) []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(endpoints), func(a netip.AddrPort) bool { return slices.Contains(vips, a) })
}
