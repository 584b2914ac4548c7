package runtime

import (
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/services"
)

// untold are the changes that the writer has not heard of yet, one for each Service: from what the writer knows to what
// is wanted now. So news may be taken while the writer is at work, or hangs, and take no more room than the Services do.
type untold struct {
	order []types.NamespacedName
	by    map[types.NamespacedName]services.Change
}

func (u *untold) add(c services.Change) {
	former, again := u.by[c.Service]
	if again {
		c.Before = former.Before
	} else {
		u.order = append(u.order, c.Service)
	}
	if u.by == nil {
		u.by = map[types.NamespacedName]services.Change{}
	}
	u.by[c.Service] = c
}

// take returns the changes in the order in which their Services first changed, and forgets them.
func (u *untold) take() []services.Change {
	out := make([]services.Change, 0, len(u.order))
	for _, name := range u.order {
		out = append(out, u.by[name])
	}
	*u = untold{}
	return out
}
