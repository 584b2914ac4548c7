package runtime

import (
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/apihealth"
	"github.com/firsthop/firsthop/runtime/services"
)

// The part of the engine that keeps the addresses of API servers and of the API
// service from other Services: see services.Reserved.

// setAPIServers takes the addresses of API servers.
func (e *engine) setAPIServers(addrs apihealth.Addresses) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.serversKnown {
		e.serversKnown = true
		e.poke()
	}
	e.servers = addrs.Reserved
	e.serviceRange.apiServers = addrs.Anywhere
	e.rangeChanged()
	e.reserve()
}

// reserve tells the table what is reserved now. What the API itself names is
// known here first, so that it is reserved by the very write that leads to it.
func (e *engine) reserve() {
	servers := slices.Clone(e.servers)
	for i := range e.api {
		for _, list := range [][]netip.AddrPort{e.api[i].Backends, e.api[i].Local, e.api[i].Serving} {
			servers = append(servers, list...)
		}
	}
	for _, a := range slices.Clone(servers) {
		// One on this node listens on loopback addresses too, and its node may use them.
		if slices.Contains(e.hostIPs, a.Addr()) {
			servers = append(servers, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.Port()),
				netip.AddrPortFrom(netip.IPv6Loopback(), a.Port()))
		}
	}
	service := e.apiAddrsLocked()
	servers = without(servers, service)
	e.apply(e.table.SetReserved(services.Reserved{Servers: servers, Service: service}))
}

// claimLogs bounds how often claims are logged: tenants may make as many as they like.
const claimLogs = 20

func newClaimLimiter() *rate.Limiter {
	return rate.NewLimiter(rate.Every(time.Minute/claimLogs), claimLogs)
}

// logClaims logs which claims on reserved addresses are new, and which are over.
func (e *engine) logClaims(service types.NamespacedName, before, after []services.Problem) {
	claims := func(list []services.Problem) []services.Problem {
		return slices.DeleteFunc(slices.Clone(list), func(p services.Problem) bool { return p.Reason != services.AddressReserved })
	}
	before, after = claims(before), claims(after)
	for _, p := range after {
		if !slices.Contains(before, p) && e.claimLog.Allow() {
			e.log.Warn("a Service claims an address that is reserved for API servers: not served", "service", service.String(), "port", p.Port, "claim", p.Message)
		}
	}
	if len(before) > 0 && len(after) == 0 && e.claimLog.Allow() {
		e.log.Info("a Service claims no address of API servers any more", "service", service.String())
	}
}

// apiAddrs are the addresses of the API service.
func (e *engine) apiAddrs() []netip.AddrPort {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.apiAddrsLocked()
}

func (e *engine) apiAddrsLocked() []netip.AddrPort {
	if len(e.api) == 0 {
		return slices.Clone(e.vips)
	}
	var out []netip.AddrPort
	for i := range e.api {
		for j, k := range e.api[i].Frontends {
			if e.api[i].Kinds[j] == services.ClusterIP && k.Proto == bpf.TCP {
				out = append(out, k.AddrPort())
			}
		}
	}
	return out
}
