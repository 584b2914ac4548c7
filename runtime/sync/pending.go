package sync

import (
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/services"
)

// pending are the changes that the writer has not got yet, one for each Service: from what the writer has to what
// is wanted now. So events may come while the writer works, or hangs, and take no more memory than the Services do.
type pending struct {
	changes []services.Change // in the order in which their Services first changed
	at      map[types.NamespacedName]int
}

func (p *pending) add(c services.Change) {
	if i, again := p.at[c.Service]; again {
		c.Before = p.changes[i].Before
		p.changes[i] = c
		return
	}
	if p.at == nil {
		p.at = map[types.NamespacedName]int{}
	}
	p.at[c.Service] = len(p.changes)
	p.changes = append(p.changes, c)
}

// take returns the changes, and forgets them.
func (p *pending) take() []services.Change {
	out := p.changes
	*p = pending{}
	return out
}
