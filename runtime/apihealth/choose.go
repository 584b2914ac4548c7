package apihealth

import (
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/natinit/apiserver"
)

// candidate is an endpoint as far as the choice is concerned.
type candidate struct {
	addr  netip.AddrPort
	first bool // of the first tier
	state apiserver.State
	// foreign is true when another cluster's server is there.
	foreign bool
	// answers is true for one that is not ready, but there: see probe.Result.
	answers bool
	// recent is true for one that fell silent just when the last one did.
	recent bool
}

// choice is what one family's part of the API service leads to.
type choice struct {
	addrs []netip.AddrPort // in numeric order
	// proven is true when one of addrs was live once, or served before we came.
	proven bool
	// live is true when all of addrs are, answers when they answer without being ready.
	live, answers bool
}

// choose decides for one family. Live endpoints of the first tier are used, if
// there are none those of the second; then those that answer without being ready: a
// slow or sick server is better than a dead one. If nothing answers, the former choice stays
// (design rule 1), whatever has become of its members: an address that vanished
// from a list is a better guess than no address. Those that fell silent together with
// its last one belong to it, though silence was noticed one by one. A former choice that was itself
// a guess, or none, gives way to the best of what is known.
func choose(former choice, candidates []candidate) choice {
	pick := func(match func(candidate) bool) []netip.AddrPort {
		var out []netip.AddrPort
		for _, c := range candidates {
			if match(c) {
				out = append(out, c.addr)
			}
		}
		slices.SortFunc(out, netip.AddrPort.Compare)
		return slices.Compact(out)
	}
	for _, first := range []bool{true, false} {
		live := pick(func(c candidate) bool { return c.first == first && c.state == apiserver.Live })
		if len(live) > 0 {
			return choice{addrs: live, proven: true, live: true}
		}
	}
	for _, first := range []bool{true, false} {
		if there := pick(func(c candidate) bool { return c.first == first && c.answers }); len(there) > 0 {
			return choice{addrs: there, proven: true, answers: true}
		}
	}
	former.live, former.answers = false, false
	// A server of another cluster gets no connection while another may come back.
	foreign := func(a netip.AddrPort) bool {
		return slices.ContainsFunc(candidates, func(c candidate) bool { return c.addr == a && c.foreign })
	}
	if own := slices.DeleteFunc(slices.Clone(former.addrs), foreign); len(own) > 0 {
		former.addrs = own
	}
	if former.proven && len(former.addrs) > 0 {
		former.addrs = append(slices.Clone(former.addrs), pick(func(c candidate) bool { return c.recent })...)
		slices.SortFunc(former.addrs, netip.AddrPort.Compare)
		former.addrs = slices.Compact(former.addrs)
		return former
	}
	if slices.ContainsFunc(candidates, func(c candidate) bool { return c.state == apiserver.Unknown }) {
		return former // a guess can wait for those that have not been asked yet
	}
	for _, state := range []apiserver.State{apiserver.NotReady, apiserver.Dead} {
		for _, first := range []bool{true, false} {
			if guess := pick(func(c candidate) bool { return c.first == first && c.state == state && !c.foreign }); len(guess) > 0 {
				return choice{addrs: guess}
			}
		}
	}
	return former
}

// families are the addresses of each family, IPv4 first.
func families[T any](list []T, addr func(T) netip.AddrPort) (out [2][]T) {
	for _, v := range list {
		f := familyOf(addr(v))
		out[f] = append(out[f], v)
	}
	return out
}

func familyOf(a netip.AddrPort) int {
	if a.Addr().Is4() {
		return 0
	}
	return 1
}

// inUse reports whether the API service leads to an address.
func (m *Monitor) inUse(a netip.AddrPort) bool {
	return slices.Contains(m.current[familyOf(a)].addrs, a)
}
