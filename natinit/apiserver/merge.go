package apiserver

import (
	"net/netip"
	"slices"
)

// Named is an endpoint that somebody has named: with an address, or a name to be looked up.
type Named struct {
	Endpoint
	Source Source
	// Preferred is set where the operator or the API itself names it, see Candidate.
	Preferred bool
	// ByHand is set where the operator gave it, now or to an earlier run.
	ByHand bool
}

// Refused says why the API service cannot lead to an endpoint, "" if it can. service tells the addresses of Services.
func (n Named) Refused(service func(netip.AddrPort) bool) string {
	switch {
	case service(n.Addr):
		return "the Service IP itself"
	case n.Resolved() && n.Addr.Addr().IsLoopback() && !n.ByHand:
		return "which pods cannot reach"
	}
	return ""
}

// Merged is an endpoint and all who named it.
type Merged struct {
	Named
	Sources []Source
	// Name is the host name by which one of them knows it.
	Name string
}

// Merge unites what sources have named, in rank order: each address once, as the first names it.
func Merge(list []Named) []Merged {
	type key struct {
		addr netip.AddrPort
		name string // of one without an address
	}
	at := map[key]int{}
	var out []Merged
	for _, n := range list {
		k := key{addr: n.Addr}
		if !n.Resolved() {
			k.name = n.Host
		}
		i, have := at[k]
		if !have {
			i = len(out)
			at[k] = i
			out = append(out, Merged{Named: n})
		}
		m := &out[i]
		if !slices.Contains(m.Sources, n.Source) {
			m.Sources = append(m.Sources, n.Source)
		}
		if m.Name == "" {
			m.Name = n.Host
		}
		m.Preferred = m.Preferred || n.Preferred
	}
	return out
}

// LedTo gives the saved addresses of a name: at boot there may be no name server yet. k may be nil.
func (k *Known) LedTo(name Endpoint) []Endpoint {
	var out []Endpoint
	if k != nil {
		for _, e := range k.Endpoints {
			if e.Host == name.Host && e.Addr.Port() == name.Addr.Port() && e.Resolved() {
				out = append(out, e.Endpoint)
			}
		}
	}
	return out
}
