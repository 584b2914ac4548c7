package nat

import (
	"net/netip"
	"time"

	"github.com/firsthop/firsthop/bpf"
)

// Kind is what becomes of a connection.
type Kind string

// The kinds.
const (
	NotOurs    Kind = "not a frontend"
	Translated Kind = "translated"
	Refused    Kind = "refused" // ECONNREFUSED, or EPERM below Linux 6.1
	Dropped    Kind = "dropped" // EHOSTUNREACH, or EPERM below Linux 6.1
)

// Verdict is what the table says of a new connection.
type Verdict struct {
	Kind     Kind
	Index    uint32            // of the service; 0: none (the mark of a VIP, or an address of the Service range that none has)
	Frontend bpf.FrontendKey   // the entry that decides: maybe the mark of a VIP, or that of all loopback addresses or other nodes
	Flags    bpf.FrontendFlags // its flags
	Set      uint32            // of the backends
	Backends []netip.AddrPort  // each may be chosen
	Affinity time.Duration     // for how long a client keeps its backend; 0: not at all

	NotInRanges bool // of LookupOutside: dropped, as the source ranges don't allow the client
}

// Lookup does what the programs do with a new connection, in the host's network
// namespace and from a client that source ranges allow.
func (s *State) Lookup(key bpf.FrontendKey) Verdict {
	v := Verdict{Kind: NotOurs, Frontend: key}
	fe, ok := s.Frontends[key]
	if addr := key.Addr.Addr(); !ok && (addr.IsLoopback() || addr.IsUnspecified()) {
		v.Frontend = bpf.LoopbackKey(addr.Is4(), key.Port.Uint16(), key.Proto)
		fe, ok = s.Frontends[v.Frontend]
	} else if !ok {
		v.Frontend = bpf.FrontendKey{Addr: key.Addr}
		fe, ok = s.Frontends[v.Frontend]
		if !ok {
			v.Frontend = bpf.NodePortKey(addr.Is4(), key.Port.Uint16(), key.Proto)
			if fe, ok = s.Frontends[v.Frontend]; ok {
				_, ok = s.Frontends[bpf.NodeKeyOf(addr)]
			}
		}
	}
	if !ok {
		v.Frontend = key
		if s.unallocated(key.Addr.Addr()) {
			v.Kind = Refused
		}
		return v
	}
	v.Index, v.Flags, v.Kind = fe.Index, fe.Flags, Refused
	if fe.Flags&bpf.FrontendVIP != 0 {
		return v
	}
	return s.choose(v, fe.Flags&bpf.FrontendLocalPolicy != 0)
}

// LookupOutside does what the packet path does with a new connection of a client outside the cluster, whose packets come
// to one of this node's uplinks.
func (s *State) LookupOutside(client netip.Addr, key bpf.FrontendKey) Verdict {
	fe, ok := s.Frontends[key]
	if !ok || fe.Flags&bpf.FrontendExternal == 0 {
		mark := bpf.ExternalVIPKeyOf(key.Addr.Addr())
		if fe, ok = s.Frontends[mark]; ok {
			return Verdict{Kind: Refused, Frontend: mark, Flags: fe.Flags}
		}
		return Verdict{Kind: NotOurs, Frontend: key}
	}
	v := Verdict{Kind: Refused, Frontend: key, Index: fe.Index, Flags: fe.Flags}
	if fe.Flags&(bpf.FrontendSourceRange|bpf.FrontendExternalRange) != 0 && !s.inRange(fe.Index, client.Unmap()) {
		v.Kind, v.NotInRanges = Dropped, true
		return v
	}
	return s.choose(v, fe.Flags&bpf.FrontendExternalLocal != 0)
}

// choose completes the verdict on a frontend that leads to a service.
func (s *State) choose(v Verdict, localPolicy bool) Verdict {
	w := s.ServiceStates[bpf.ServiceStateAt(v.Index, localPolicy)]
	if w.Drop() {
		v.Kind = Dropped
		return v
	}
	v.Set, v.Affinity = w.Set(), s.AffinityOf(w)
	for slot := range w.Count() {
		be, ok := s.Sets[w.Set()][slot]
		if !ok {
			return v
		}
		v.Backends = append(v.Backends, be.AddrPort())
	}
	if len(v.Backends) > 0 {
		v.Kind = Translated
	}
	return v
}

// AffinityOf is the affinity of the set that a state leads to; 0: none.
func (s *State) AffinityOf(w bpf.ServiceState) time.Duration {
	if !w.Affinity() {
		return 0
	}
	return time.Duration(s.Sets[w.Set()][bpf.SlotAffinity].ID) * time.Second
}

// affinity is that of the service at an index.
func (s *State) affinity(index uint32) time.Duration {
	return s.AffinityOf(s.ServiceStates[bpf.ServiceStateAt(index, false)])
}
