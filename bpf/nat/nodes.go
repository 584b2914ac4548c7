package nat

import (
	"fmt"
	"net/netip"

	"github.com/firsthop/firsthop/bpf"
)

// The part of the planner that is about the addresses of other nodes, at which frontends of bpf.NodePortKey are served.

// SetNodes plans which addresses are those of other nodes, each once. The marks
// are no writer's, and the runtime alone writes them. The error of a table
// without room for them matches ErrFrontendsFull; nothing was planned then.
func (p *Planner) SetNodes(addrs []netip.Addr) error {
	var come []bpf.FrontendKey
	stay := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		if k := bpf.NodeKeyOf(a); !p.nodes[a] && !stay[a] {
			come = append(come, k)
		}
		stay[a] = true
	}
	if most := p.capacity.limits.Frontends; most > 0 {
		left := most + p.capacity.frontends
		for _, k := range come {
			if p.dirty.frontends[k] != nil { // goes with this plan
				left++
			}
		}
		if len(come) > left {
			return fmt.Errorf("addresses of nodes need room for %d frontends, of %d there are %d left: %w", len(come), most, max(left, 0), ErrFrontendsFull)
		}
	}
	for a := range p.nodes {
		if !stay[a] {
			p.deleteFrontend(bpf.NodeKeyOf(a))
		}
	}
	for _, k := range come {
		p.putFrontend(k, bpf.Frontend{Flags: bpf.FrontendNode})
	}
	p.nodes = stay
	return nil
}

// AddsNodes reports whether SetNodes would mark any address that isn't marked.
func (p *Planner) AddsNodes(addrs []netip.Addr) bool {
	for _, a := range addrs {
		if !p.nodes[a] {
			return true
		}
	}
	return false
}

// Nodes is how many addresses are marked as other nodes'.
func (p *Planner) Nodes() int { return len(p.nodes) }
