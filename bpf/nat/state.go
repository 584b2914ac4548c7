// Package nat keeps the NAT table in order: it is the model of the table, the
// planner that allocates ids and orders the writes, and the one place that
// applies them.
//
// The init stage and the runtime share it, so that a seed and a full table can
// never disagree on ids. Everything here is pure but for the Store.
//
// # Order of writes
//
// Traffic reads the table while it is written. A plan is ordered so that every
// state in between is valid:
//
//  1. backends of new sets, which nothing points to yet, and new ranges,
//     of the Service range last: what others serve of it is known by then
//  2. states: each flips one service from its old set to its new one
//  3. frontends that change, each by one store (see ChangeFrontends)
//  4. frontends of new services, then the marks of their VIPs and of nodes
//  5. frontends that go, marks first; after one RCU grace period where what goes
//     is looked for after what came (Plan.replacesAtNodes)
//  6. after one RCU grace period, what programs may have used until then: states
//     that no frontend points to, source ranges, old sets
//
// A plan hardly ever waits, whatever it changes, and many share the grace period of
// step 6. Until that is over, an index without frontends has no new owner
// (Planner.Released), and no frontend comes that may get the memory of one that
// went (Plan.AddsFrontends).
//
// Steps 1 to 5 can be taken back (Applied.Rollback) until step 6
// (Applied.Commit). A writer that is killed between any two leaves sets, states or
// source ranges that nothing points to; the next plan collects them.
//
// Writers hold the instance's lock. Readers need none.
package nat

import (
	"bytes"
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/bpf"
)

// State is a copy of a table's content. It is not safe for concurrent use.
type State struct {
	Generation    uint64 // highest set id ever given out
	Services      uint32 // capacity: indexes run from 1 to Services-1
	Frontends     map[bpf.FrontendKey]bpf.Frontend
	ServiceStates map[uint32]bpf.ServiceState       // by place in the array (bpf.ServiceStateAt); zero states are absent
	Sets          map[uint32]map[uint32]bpf.Backend // by set id and slot or member id
	SourceRanges  map[bpf.SourceRangeKey]bool       // the source ranges that are there
	Capacity      Capacity                          // capacity
}

// NewState gives an empty table with room for services indexes.
func NewState(services uint32) *State {
	return &State{
		Services:      services,
		Frontends:     map[bpf.FrontendKey]bpf.Frontend{},
		ServiceStates: map[uint32]bpf.ServiceState{},
		Sets:          map[uint32]map[uint32]bpf.Backend{},
		SourceRanges:  map[bpf.SourceRangeKey]bool{},
	}
}

// Resolve does what the programs do with a new connection: every backend that
// it could get. refused is true where it would be refused or dropped; neither a
// backend nor refused means that the address isn't a frontend. Lookup says more.
func (s *State) Resolve(key bpf.FrontendKey) (backends []netip.AddrPort, refused bool) {
	v := s.Lookup(key)
	return v.Backends, v.Kind == Refused || v.Kind == Dropped
}

// Backends are the addresses of the set behind a state, in slot order.
func (s *State) Backends(w bpf.ServiceState) []netip.AddrPort {
	var out []netip.AddrPort
	for slot := range w.Count() {
		if be, ok := s.Sets[w.Set()][slot]; ok {
			out = append(out, be.AddrPort())
		}
	}
	return out
}

// OnNode are the backends of a service that are marked as being on this node, sorted, each once.
func (s *State) OnNode(index uint32) (out []netip.AddrPort) {
	for _, local := range []bool{false, true} {
		w := s.ServiceStates[bpf.ServiceStateAt(index, local)]
		for slot := range w.Count() {
			if be, ok := s.Sets[w.Set()][slot]; ok && be.Flags&bpf.BackendLocal != 0 {
				out = append(out, be.AddrPort())
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// FrontendsOf are the frontends of a service index, sorted.
func (s *State) FrontendsOf(index uint32) []bpf.FrontendKey {
	var keys []bpf.FrontendKey
	for k, fe := range s.Frontends {
		if fe.Index == index && !fe.Mark() {
			keys = append(keys, k)
		}
	}
	sortKeys(keys)
	return keys
}

// Indexes are the service indexes that have a frontend, sorted.
func (s *State) Indexes() []uint32 {
	seen := map[uint32]bool{}
	var out []uint32
	for _, fe := range s.Frontends {
		if !fe.Mark() && !seen[fe.Index] {
			seen[fe.Index] = true
			out = append(out, fe.Index)
		}
	}
	slices.Sort(out)
	return out
}

func sortKeys(keys []bpf.FrontendKey) { slices.SortFunc(keys, CompareKeys) }

// CompareKeys orders frontends by address, port and protocol.
func CompareKeys(a, b bpf.FrontendKey) int {
	const mapped = 12 // bytes before an IPv4 address
	switch {
	case a.Addr == b.Addr:
	case [mapped]byte(a.Addr[:mapped]) == [mapped]byte(b.Addr[:mapped]): // of one family
		return bytes.Compare(a.Addr[mapped:], b.Addr[mapped:])
	default:
		return a.Addr.Addr().Compare(b.Addr.Addr())
	}
	return cmp.Or(cmp.Compare(a.Port.Uint16(), b.Port.Uint16()), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Nodes, b.Nodes))
}

func (s *State) clone() *State {
	c := &State{
		Generation:    s.Generation,
		Services:      s.Services,
		Frontends:     maps.Clone(s.Frontends),
		ServiceStates: maps.Clone(s.ServiceStates),
		Sets:          maps.Clone(s.Sets), // sets are never changed once written
		SourceRanges:  maps.Clone(s.SourceRanges),
		Capacity:      s.Capacity,
	}
	return c
}
