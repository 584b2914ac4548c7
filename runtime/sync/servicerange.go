package sync

import (
	"net/netip"
	"slices"
	"time"

	"github.com/firsthop/firsthop/runtime/services"
)

// serviceRange are the addresses that Services are given: the programs refuse
// those that no Service has. It is written after everything else was once, as
// before that most Services would be among them.
type serviceRange struct {
	*services.ServiceRange
	known      bool         // which CIDRs there are: by an option, or from the API
	changed    bool         // since the writer got it
	apiServers []netip.Addr // wherever one may be
}

// newServiceRange takes the CIDRs that are given; nil: the API names them.
func newServiceRange(given []netip.Prefix) serviceRange {
	return serviceRange{ServiceRange: services.NewServiceRange(given), known: given != nil, changed: true}
}

// rangeChanged notes that something changed that the range is made of.
func (l *Loop) rangeChanged() {
	l.serviceRange.changed = true
	l.queueRange()
}

// rangeIsDue reports whether the range is to be written.
func (l *Loop) rangeIsDue() bool {
	return l.serviceRange.known && l.serviceRange.changed && !l.liveness.Applied().IsZero()
}

func (l *Loop) queueRange() {
	if l.rangeIsDue() {
		l.liveness.queue(time.Now())
		l.notify()
	}
}

// takeRange returns what to write of the range, if it is due. Networks of this
// host, nodes, and wherever an API server was ever known to be, are never refused,
// whatever somebody took for the Service range.
func (l *Loop) takeRange() (ranges, others []netip.Prefix, due bool) {
	if !l.rangeIsDue() {
		return nil, nil, false
	}
	l.serviceRange.changed = false
	notOurs := slices.Clone(l.node.hostNets)
	for _, a := range slices.Concat(l.node.ips, l.serviceRange.apiServers) {
		notOurs = append(notOurs, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, ips := range l.node.others.ips {
		for _, a := range ips {
			notOurs = append(notOurs, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	ranges, others = l.serviceRange.Ranges(notOurs)
	return ranges, others, true
}
