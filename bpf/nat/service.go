package nat

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/firsthop/firsthop/bpf"
)

// Indexes are a range of service indexes that belong to one writer.
type Indexes struct{ First, Last uint32 }

// InitIndexes belong to the init stage; everything above to the runtime.
var InitIndexes = Indexes{First: 1, Last: 1023}

// Contains reports whether an index is in the range.
func (r Indexes) Contains(index uint32) bool { return r.First <= index && index <= r.Last }

// RuntimeIndexes belong to the runtime; how many there really are, the table's size says.
var RuntimeIndexes = Indexes{First: InitIndexes.Last + 1, Last: bpf.IndexServiceExcept - 1}

// MaxAffinity is the longest that a client may keep a backend: Kubernetes allows 86,400 s.
const MaxAffinity = 24 * time.Hour

// Service is one Service port as the table should have it: what clients
// connect to, and where they get. All addresses are of one family.
type Service struct {
	Name      string            // for messages only: "default/kubernetes:https (IPv4)"
	Frontends []bpf.FrontendKey // at least one
	VIPs      []netip.Addr      // addresses of Frontends whose other ports are to be refused
	// ExternalVIPs are addresses of Frontends whose other ports are to be refused to clients outside the cluster.
	ExternalVIPs []netip.Addr
	Backends     []netip.AddrPort // for cluster traffic, at least one unless AllowEmpty
	Sticky       bool             // unconnected UDP sockets keep their backend

	// Flags are those of Frontends that have any: FrontendLocalPolicy, FrontendSourceRange,
	// FrontendExternal, and with that FrontendExternalLocal and FrontendExternalRange.
	Flags map[bpf.FrontendKey]bpf.FrontendFlags

	// Local are the backends for clients inside the cluster of frontends with FrontendLocalPolicy, and for those
	// outside of frontends with FrontendExternalLocal: those on this node.
	// Where there are none, connections are dropped, or, if Backends is
	// empty too, refused. nil and no such frontend: nothing is written for it.
	Local []netip.AddrPort

	// OnNode are those of Backends and Local that are known to be on this node: their entries say so (BackendLocal).
	OnNode []netip.AddrPort

	// Affinity is for how long after its last connection a client keeps its
	// backend, in whole seconds up to MaxAffinity; 0: not at all.
	Affinity time.Duration

	// SourceRanges are the clients that frontends with FrontendSourceRange allow, and those outside that frontends with
	// FrontendExternalRange allow; others are dropped.
	SourceRanges []netip.Prefix

	// AllowEmpty lets a Service have no backend: its connections are refused.
	// Never set for the API service (design rule "never empty").
	AllowEmpty bool
}

// Validate checks what a table can't hold.
func (s Service) Validate() error {
	if len(s.Frontends) == 0 {
		return fmt.Errorf("service %s has no frontend", s.Name)
	}
	if len(s.Backends) == 0 && !s.AllowEmpty {
		return fmt.Errorf("service %s would be left without a backend", s.Name)
	}
	is4 := s.Frontends[0].Addr.Addr().Is4()
	for _, k := range s.Frontends {
		if a := k.Addr.Addr(); a.Is4() != is4 {
			return fmt.Errorf("service %s mixes families: %v and %v", s.Name, s.Frontends[0], k)
		}
		if k.Proto == 0 || k.Port == (bpf.Port{}) {
			return fmt.Errorf("service %s: frontend %v has no port or protocol", s.Name, k)
		}
	}
	for _, list := range [...][]netip.AddrPort{s.Backends, s.Local} {
		for _, b := range list {
			if b.Addr().Unmap().Is4() != is4 {
				return fmt.Errorf("service %s: backend %v is not of the frontends' family", s.Name, b)
			}
		}
	}
	for _, list := range [...][]netip.Addr{s.VIPs, s.ExternalVIPs} {
		for _, v := range list {
			if !slices.ContainsFunc(s.Frontends, func(k bpf.FrontendKey) bool { return k.Addr == bpf.AddressOf(v) }) {
				return fmt.Errorf("service %s: VIP %v has no frontend", s.Name, v)
			}
		}
	}
	for _, r := range s.SourceRanges {
		if !r.IsValid() || r.Addr().Is4() != is4 {
			return fmt.Errorf("service %s: source range %v is not of the frontends' family", s.Name, r)
		}
	}
	for k, flags := range s.Flags {
		if !slices.Contains(s.Frontends, k) || !validFlags(flags) {
			return fmt.Errorf("service %s: flags %#x of %v: want Local policies, source ranges or what is for clients outside, of one of its frontends", s.Name, flags, k)
		}
	}
	if a := s.Affinity; a < 0 || a > MaxAffinity || a%time.Second != 0 {
		return fmt.Errorf("service %s: affinity of %v: want whole seconds up to %v", s.Name, a, MaxAffinity)
	}
	return nil
}

// localFlags have clients go by the state for local traffic: those inside the cluster, and those outside.
const localFlags = bpf.FrontendLocalPolicy | bpf.FrontendExternalLocal

// validFlags reports whether a Service may ask for flags. Those that say more of clients outside are for frontends that
// serve these.
func validFlags(flags bpf.FrontendFlags) bool {
	const outside = bpf.FrontendExternalLocal | bpf.FrontendExternalRange
	return flags&^(bpf.FrontendLocalPolicy|bpf.FrontendSourceRange|bpf.FrontendExternal|outside) == 0 &&
		(flags&outside == 0 || flags&bpf.FrontendExternal != 0)
}

// hasLocal reports whether the state for local traffic is wanted.
func (s Service) hasLocal() bool {
	if s.Local != nil {
		return true
	}
	for _, flags := range s.Flags {
		if flags&localFlags != 0 {
			return true
		}
	}
	return false
}

// backendFlags returns what the flags of each backend are.
func (s Service) backendFlags() func(netip.AddrPort) bpf.BackendFlags {
	if len(s.OnNode) == 0 {
		return func(netip.AddrPort) bpf.BackendFlags { return 0 }
	}
	here := setOf(distinct(s.OnNode))
	return func(b netip.AddrPort) bpf.BackendFlags {
		if here[b] {
			return bpf.BackendLocal
		}
		return 0
	}
}

// hasMembers reports whether backends are to be found by id too: for sockets or clients that keep theirs.
func (s Service) hasMembers() bool { return s.Sticky || s.Affinity > 0 }
