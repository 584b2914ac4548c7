package services

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/bpf"
)

// Reserved are the addresses that no Service but default/kubernetes may have: who
// owns a Service writes its external IPs, and so could take the API servers away
// from every node (CVE-2020-8554, kubernetes#127410). Only TCP is reserved.
type Reserved struct {
	// Servers are the addresses of API servers, with their ports.
	Servers []netip.AddrPort
	// Service are those of the API service.
	Service []netip.AddrPort
}

// reserved is Reserved as the table looks it up.
type reserved struct {
	keys    map[bpf.FrontendKey]string // what they are the address of
	servers map[netip.Addr]bool        // hosts of API servers
	atNodes map[bpf.FrontendKey]string // node ports that would take their connections, see Table.reserveAtNodes
}

func (r Reserved) index() reserved {
	out := reserved{keys: map[bpf.FrontendKey]string{}, servers: map[netip.Addr]bool{}}
	for _, a := range r.Service {
		out.keys[keyOf(a)] = "the API service"
	}
	for _, a := range r.Servers {
		out.keys[keyOf(a)] = "an API server"
		out.servers[a.Addr().Unmap()] = true
	}
	return out
}

// keyOf is the frontend that would take the connections to an address. Node ports
// on loopback addresses have one for all of them.
func keyOf(a netip.AddrPort) bpf.FrontendKey {
	addr := a.Addr().Unmap()
	if addr.IsLoopback() {
		return bpf.LoopbackKey(addr.Is4(), a.Port(), bpf.TCP)
	}
	return bpf.FrontendKeyOf(netip.AddrPortFrom(addr, a.Port()), bpf.TCP)
}

// SetReserved takes the addresses that are reserved from now on. A frontend that
// is one of them is withdrawn, and granted again when it no longer is. It costs
// what the Services cost that ask for such frontends.
func (t *Table) SetReserved(r Reserved) []Change {
	now := r.index()
	before := t.claims.reserved
	if maps.Equal(now.keys, before.keys) && maps.Equal(now.servers, before.servers) {
		return nil
	}
	now.atNodes = before.atNodes
	t.claims.reserved = now
	t.reserveAtNodes()
	for _, keys := range []map[bpf.FrontendKey]string{before.keys, now.keys} {
		for k := range keys {
			if before.keys[k] == now.keys[k] {
				continue
			}
			t.touchClaims(k)
		}
	}
	for _, addrs := range []map[netip.Addr]bool{before.servers, now.servers} {
		for a := range addrs {
			if before.servers[a] != now.servers[a] && t.claims.hasVIP(bpf.AddressOf(a)) {
				t.touchVIP(a)
			}
		}
	}
	return t.settle()
}

// touchVIP makes the Services dirty that have an address. It is rare: an API server at a cluster IP, a node at an external IP.
func (t *Table) touchVIP(a netip.Addr) {
	for _, e := range t.entries {
		if slices.ContainsFunc(e.asked, func(p Port) bool {
			return slices.ContainsFunc(p.Frontends, func(k bpf.FrontendKey) bool { return k.Addr.Addr() == a })
		}) {
			t.dirty[e] = true
		}
	}
}

// denied says whose address a frontend is that an entry may not have; "": it may.
func (r *reserved) denied(e *entry, k bpf.FrontendKey) string {
	if e.name == APIService {
		return ""
	}
	if k.AtNodes() {
		return r.atNodes[k]
	}
	return r.keys[k]
}

// host reports whether an API server has an address.
func (r *reserved) host(a netip.Addr) bool { return r.servers[a] }
