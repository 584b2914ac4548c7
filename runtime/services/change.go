package services

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
)

// Change is what a change of an object does to one Service. Its lists are
// shared: don't change them.
type Change struct {
	Service  types.NamespacedName
	Before   []Port    // what was wanted; none: nothing
	After    []Port    // what is wanted now; none: nothing
	Problems []Problem // all that there are now. A Change may be of them only.
}

// Gone are the frontends that no Service wants after changes which belong
// together, sorted as they were. One that went from one Service to another is not
// gone.
func Gone(changes []Change) []bpf.FrontendKey {
	kept := map[bpf.FrontendKey]bool{}
	for _, c := range changes {
		for i := range c.After {
			for _, k := range c.After[i].Frontends {
				kept[k] = true
			}
		}
	}
	var out []bpf.FrontendKey
	for _, c := range changes {
		for i := range c.Before {
			for _, k := range c.Before[i].Frontends {
				if !kept[k] {
					kept[k] = true // once
					out = append(out, k)
				}
			}
		}
	}
	return out
}

// Stale are backends of a Port that serve no longer. What goes on to them is to
// be forgotten: tracked flows of UDP, connected sockets.
type Stale struct {
	Port     PortKey
	Former   []bpf.FrontendKey // those of the Port before the change
	Backends []netip.AddrPort
}

// Stale are the backends that serve no longer after the change, a Port at a
// time. Policies, hints and the end of a pod's readiness make none stale: what has
// begun goes on (as in kube-proxy's conntrack.CleanStaleEntries). All of a Port
// that went are stale.
func (c *Change) Stale() []Stale {
	var out []Stale
	for i := range c.Before {
		before := &c.Before[i]
		var serving []netip.AddrPort
		if j, ok := slices.BinarySearchFunc(c.After, before.Key, func(p Port, k PortKey) int { return p.Key.Compare(k) }); ok {
			serving = c.After[j].Serving
		}
		if gone := without(before.Serving, serving); len(gone) > 0 {
			out = append(out, Stale{before.Key, before.Frontends, gone})
		}
	}
	return out
}

// without is what of a sorted list is not in another.
func without(list, other []netip.AddrPort) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range list {
		if _, ok := slices.BinarySearchFunc(other, a, netip.AddrPort.Compare); !ok {
			out = append(out, a)
		}
	}
	return out
}
