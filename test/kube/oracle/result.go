package oracle

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/firsthop/firsthop/runtime/services"
)

// Result is what a service proxy does with a world. Two that are deeply equal do the same.
type Result map[PortKey]Port

// PortKey names a port of a Service in one family.
type PortKey struct {
	Namespace, Service, Port, Proto string
	IPv6                            bool
}

func (k PortKey) String() string {
	family := 4
	if k.IPv6 {
		family = 6
	}
	return fmt.Sprintf("%s/%s:%s/%s IPv%d", k.Namespace, k.Service, k.Port, k.Proto, family)
}

// Port is what a service proxy does for one of them.
type Port struct {
	Frontends map[Frontend]Reach
	Affinity  int      // seconds; 0: none
	Serving   []string // the endpoints to which flows may go on
	Health    Health
}

// Frontend is an address, port and protocol that clients use. For a node port on loopback the address is 127.0.0.0, or
// ::127.0.0.0 for IPv6.
type Frontend struct {
	Addr  netip.AddrPort
	Proto string
}

// Reach is where a frontend leads, for clients inside of the cluster and outside.
type Reach struct {
	Kind            services.Kind
	Inside, Outside Choice
	// Limited frontends allow only clients in Ranges, inside and outside. That we limit others for clients outside alone
	// (external IPs, and by annotation node ports) is left out: kube-proxy knows nothing like it.
	Limited bool
	Ranges  []netip.Prefix
}

// Choice are the endpoints that new connections are spread over, sorted; or what happens when there is none.
type Choice struct {
	Endpoints []string
	Otherwise Fate
}

// Fate is what becomes of a connection that leads nowhere.
type Fate string

// The fates. Connections are rejected when the Service has no usable endpoint anywhere, and dropped when it has some,
// but none that the policy allows here.
const (
	Rejected Fate = "rejected"
	Dropped  Fate = "dropped"
)

// Health is what a load balancer is told.
type Health struct {
	NodePort   int
	LocalReady int
}

// choose makes a Choice. Both lists are there for the one question whether the Service has endpoints at all.
func choose(endpoints []string, anywhere bool) Choice {
	switch {
	case len(endpoints) > 0:
		slices.Sort(endpoints)
		return Choice{Endpoints: endpoints}
	case anywhere:
		return Choice{Otherwise: Dropped}
	}
	return Choice{Otherwise: Rejected}
}

// add gives a port a frontend, unless it has it by an earlier kind.
func (p *Port) add(f Frontend, r Reach) {
	if _, ok := p.Frontends[f]; !ok {
		p.Frontends[f] = r
	}
}
