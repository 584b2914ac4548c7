package sync

import (
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/watch"
)

// Event is something that happened: one of the types below.
type Event any

// Subscriber is called for each Event, in order, with the Loop's lock held: it
// must not block, and must not call the Loop. Lists in Events are shared: don't
// change them.
type Subscriber func(Event)

// The events.
type (
	// Observed is an object as the API sent it. The Loop handles it next.
	Observed struct{ *watch.Event }

	// PortsChanged says what a Service should have in the table now.
	PortsChanged struct {
		Service types.NamespacedName
		Ports   []services.Port
	}
	// NodePortAddrs are the addresses that node ports are served on, where an option selects them.
	NodePortAddrs []netip.Addr
	// NodeAddrs are the addresses of another node; none: it is gone.
	NodeAddrs struct {
		Node  string
		Addrs []netip.Addr
	}
	// SourceRanges says whether any Service has source ranges.
	SourceRanges bool
	// PodsReady says, once, that all is known that decides what the programs must know of pods.
	PodsReady struct{}
	// ServiceRange are the CIDRs that Services are given addresses of, with which the flush that begins is written.
	ServiceRange []netip.Prefix
	// APIServers are those that the API names, and the addresses at which it is a Service.
	APIServers struct{ Endpoints, Services []netip.AddrPort }

	// Queued is when something came that is to be written.
	Queued time.Time
	// FlushBegun says that all that was queued is being written; Queued is since
	// when the oldest of it waited, zero if nothing did.
	FlushBegun struct{ Queued time.Time }
	// FlushDone ends every FlushBegun before it. Err nil: all of it is written.
	FlushDone struct{ Err error }
)

// Subscribe adds a Subscriber. It is called before Run and before anything happens.
func (l *Loop) Subscribe(s Subscriber) { l.subscribers = append(l.subscribers, s) }

func (l *Loop) publish(e Event) {
	for _, s := range l.subscribers {
		s(e)
	}
}
