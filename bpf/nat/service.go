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
	Backends  []netip.AddrPort  // for cluster traffic, at least one unless AllowEmpty
	Sticky    bool              // unconnected UDP sockets keep their backend

	// Flags are those of Frontends that have any: FrontendLocalPolicy, FrontendSourceRange.
	Flags map[bpf.FrontendKey]bpf.FrontendFlags

	// Local are the backends for the frontends with FrontendLocalPolicy: those on this
	// node. Where there are none, connections are dropped, or, if Backends is
	// empty too, refused. nil and no such frontend: nothing is written for it.
	Local []netip.AddrPort

	// Affinity is for how long after its last connection a client keeps its
	// backend, in whole seconds up to MaxAffinity; 0: not at all.
	Affinity time.Duration

	// SourceRanges are the clients that frontends with FrontendSourceRange allow; others are dropped.
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
	for _, v := range s.VIPs {
		if !slices.ContainsFunc(s.Frontends, func(k bpf.FrontendKey) bool { return k.Addr == bpf.AddressOf(v) }) {
			return fmt.Errorf("service %s: VIP %v has no frontend", s.Name, v)
		}
	}
	for _, r := range s.SourceRanges {
		if !r.IsValid() || r.Addr().Is4() != is4 {
			return fmt.Errorf("service %s: source range %v is not of the frontends' family", s.Name, r)
		}
	}
	for k, flags := range s.Flags {
		if !slices.Contains(s.Frontends, k) || flags&^(bpf.FrontendLocalPolicy|bpf.FrontendSourceRange) != 0 {
			return fmt.Errorf("service %s: flags %#x of %v: want the Local policy or source ranges, of one of its frontends", s.Name, flags, k)
		}
	}
	if a := s.Affinity; a < 0 || a > MaxAffinity || a%time.Second != 0 {
		return fmt.Errorf("service %s: affinity of %v: want whole seconds up to %v", s.Name, a, MaxAffinity)
	}
	return nil
}

// hasLocal reports whether the state for local traffic is wanted.
func (s Service) hasLocal() bool {
	if s.Local != nil {
		return true
	}
	for _, flags := range s.Flags {
		if flags&bpf.FrontendLocalPolicy != 0 {
			return true
		}
	}
	return false
}

// hasMembers reports whether backends are to be found by id too: for sockets or clients that keep theirs.
func (s Service) hasMembers() bool { return s.Sticky || s.Affinity > 0 }
