package apiserver

import (
	"net/netip"
	"slices"
)

// Rank orders API servers by what is known of them, the best last. An answer that the cluster's CA does not verify is no
// answer.
type Rank int

const (
	// RankNone gets no connections: it has not been asked, or is of another cluster.
	RankNone Rank = iota
	// RankForeign is one that the operator gave, and at which another cluster's server answers, or none.
	RankForeign
	// RankDead gives no answer, and may come back.
	RankDead
	// RankNotReady accepts connections, and gives no answer.
	RankNotReady
	// RankAnswering answers without being ready.
	RankAnswering
	// RankLive answers, and is ready where that was asked for.
	RankLive
)

// Candidate is an address that the API service may lead to.
type Candidate struct {
	Addr netip.AddrPort
	// Preferred ones were given, or named by the API itself. Beside one of these the others of the same rank get no
	// connections: an address from a file may by now belong to another machine.
	Preferred bool
	State     State
	// Answers is true for one that is not ready, but there.
	Answers bool
	// Foreign is true where another cluster's server answers, or something else.
	Foreign bool
	// Given is true for one that the operator gave.
	Given bool
	// Recent is true for one that fell silent just when the last one did.
	Recent bool
}

// Rank is that of a candidate.
func (c Candidate) Rank() Rank {
	switch {
	case c.State == Live:
		return RankLive
	case c.State == NotReady && c.Answers:
		return RankAnswering
	case c.State == NotReady:
		return RankNotReady
	case c.State == Dead && !c.Foreign:
		return RankDead
	case c.State == Dead && c.Given:
		return RankForeign
	}
	return RankNone
}

// Choice is what the API service leads to in one family.
type Choice struct {
	Addrs []netip.AddrPort // in numeric order
	// Proven is true when one of Addrs was live once, or served before we came.
	Proven bool
	// Rank is that of all of Addrs; RankNone where they are those of a former choice.
	Rank Rank
}

// Live is true when all of the choice are ready.
func (c Choice) Live() bool { return c.Rank == RankLive }

// Answers is true when all of the choice answer, ready or not.
func (c Choice) Answers() bool { return c.Rank >= RankAnswering }

// Choose decides for one family: those of the best rank, and of these the preferred ones. If nothing answers, the former
// choice stays, whatever has become of its members: an address that vanished from a list is a better guess than no
// address. Those that fell silent together with its last one belong to it, though silence was noticed one by one. A former
// choice that was itself a guess, or none, gives way to the best of what is known. So the choice is empty only where no
// address of the cluster was ever known.
func Choose(former Choice, candidates []Candidate) Choice {
	addrs, rank := best(candidates)
	if rank >= RankAnswering {
		return Choice{Addrs: addrs, Proven: true, Rank: rank}
	}
	former.Rank = RankNone
	// A server of another cluster gets no connection while another may come back.
	own := slices.DeleteFunc(slices.Clone(former.Addrs), func(a netip.AddrPort) bool {
		return slices.ContainsFunc(candidates, func(c Candidate) bool { return c.Addr == a && c.Foreign })
	})
	if len(own) > 0 {
		former.Addrs = own
	}
	if former.Proven && len(former.Addrs) > 0 {
		former.Addrs = slices.Clone(former.Addrs)
		for _, c := range candidates {
			if c.Recent {
				former.Addrs = append(former.Addrs, c.Addr)
			}
		}
		former.Addrs = sorted(former.Addrs)
		return former
	}
	if slices.ContainsFunc(candidates, func(c Candidate) bool { return c.State == Unknown }) {
		return former // a guess can wait for those that have not been asked yet
	}
	if rank > RankNone {
		return Choice{Addrs: addrs, Rank: rank}
	}
	return former
}

// best gives the best rank, and who has it.
func best(candidates []Candidate) (addrs []netip.AddrPort, rank Rank) {
	preferred := false
	for _, c := range candidates {
		switch r := c.Rank(); {
		case r > rank:
			rank, preferred = r, c.Preferred
		case r == rank:
			preferred = preferred || c.Preferred
		}
	}
	for _, c := range candidates {
		if rank > RankNone && c.Rank() == rank && c.Preferred == preferred {
			addrs = append(addrs, c.Addr)
		}
	}
	return sorted(addrs), rank
}

func sorted(addrs []netip.AddrPort) []netip.AddrPort {
	slices.SortFunc(addrs, netip.AddrPort.Compare)
	return slices.Compact(addrs)
}

// Families are the parts of a list for IPv4 and for IPv6.
func Families[T any](list []T, addr func(T) netip.AddrPort) (out [2][]T) {
	for _, v := range list {
		f := Family(addr(v).Addr())
		out[f] = append(out[f], v)
	}
	return out
}
