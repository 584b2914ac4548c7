package apihealth

import (
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// addressesKnown are the addresses that OnKnown gets.
func (m *Monitor) addressesKnown() Addresses {
	var out Addresses
	for _, e := range m.known() {
		out.Anywhere = append(out.Anywhere, e.Addr.Addr())
	}
	for _, e := range m.clientsUse() {
		for _, a := range m.addresses(e.Endpoint) {
			out.add(a.Addr)
		}
	}
	for _, c := range m.current {
		for _, a := range c.Addrs {
			out.add(a)
		}
	}
	out.Reserved = slices.DeleteFunc(out.Reserved, func(a netip.AddrPort) bool { return m.serviceAddr(a) })
	slices.SortFunc(out.Anywhere, netip.Addr.Compare)
	slices.SortFunc(out.Reserved, netip.AddrPort.Compare)
	out.Anywhere, out.Reserved = slices.Compact(out.Anywhere), slices.Compact(out.Reserved)
	return out
}

func (a *Addresses) add(addr netip.AddrPort) {
	if addr.IsValid() {
		a.Reserved = append(a.Reserved, addr)
	}
}

// clientsUse is where clients of this node, firsthop among them, connect to an API
// server, as far as it is known. What is known no better than from the past counts until the
// API names its servers: an address that belongs to nobody any more may be given to a Service.
func (m *Monitor) clientsUse() []apiserver.Named {
	out := slices.Concat(m.firstTier(), m.inFiles, m.helped)
	if len(m.named) > 0 {
		return out
	}
	for _, a := range m.cfg.Adopted {
		out = append(out, adopted(a))
	}
	return append(out, m.savedMembers()...)
}
