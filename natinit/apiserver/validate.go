package apiserver

import (
	"fmt"
	"net/netip"
	"slices"
)

// Validate judges Service entries and endpoints together. One of them empty
// is no error: what is missing is discovered. Errors are *EntryError:
//
//   - a family with endpoints but no Service IP, or the reverse. A host name
//     may stand for either family until it is resolved.
//   - a Service entry that is also an endpoint: the connection would be
//     translated to itself.
func Validate(services []netip.AddrPort, endpoints []Endpoint) error {
	if len(services) == 0 || len(endpoints) == 0 {
		return nil
	}
	var svc, eps [2]bool
	for _, s := range services {
		svc[Family(s.Addr())] = true
	}
	names := false
	for _, e := range endpoints {
		switch {
		case !e.Resolved():
			names = true
		case slices.Contains(services, e.Addr):
			return &EntryError{Variable: VarEndpoints, Entry: e.HostPort(),
				Reason: fmt.Sprintf("is the Service entry %s itself; write the address that the API server listens on", e.Addr)}
		default:
			eps[Family(e.Addr.Addr())] = true
		}
	}
	for _, e := range endpoints {
		if f := Family(e.Addr.Addr()); e.Resolved() && !svc[f] && e.Host == "" {
			return &EntryError{Variable: VarEndpoints, Entry: e.HostPort(),
				Reason: fmt.Sprintf("is an %s endpoint, but %s has no %s address", familyName(f), VarServices, familyName(f))}
		}
	}
	for _, s := range services {
		if f := Family(s.Addr()); !eps[f] && !names {
			return &EntryError{Variable: VarServices, Entry: s.String(),
				Reason: fmt.Sprintf("is an %s Service IP, but %s has no %s address", familyName(f), VarEndpoints, familyName(f))}
		}
	}
	return nil
}

// Family is 0 for IPv4 and 1 for IPv6.
func Family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func familyName(f int) string { return [2]string{"IPv4", "IPv6"}[f] }
