package runtime

import (
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/services"
)

// untold are the changes that the writer has not heard of yet, one for each Service: from what the writer knows to what
// is wanted now. So news may be taken while the writer is at work, or hangs, and take no more room than the Services do.
type untold struct {
	changes []services.Change // in the order in which their Services first changed
	at      map[types.NamespacedName]int
}

func (u *untold) add(c services.Change) {
	if i, again := u.at[c.Service]; again {
		c.Before = u.changes[i].Before
		u.changes[i] = c
		return
	}
	if u.at == nil {
		u.at = map[types.NamespacedName]int{}
	}
	u.at[c.Service] = len(u.changes)
	u.changes = append(u.changes, c)
}

// take returns the changes, and forgets them.
func (u *untold) take() []services.Change {
	out := u.changes
	*u = untold{}
	return out
}
