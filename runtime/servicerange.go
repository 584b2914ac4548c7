package runtime

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/runtime/watch"
)

// The part of the engine that is about addresses of Services that no Service has:
// the programs refuse them. They are told last: after the first write, as
// before it most Services would be among them.

// serviceRange is what of it the engine keeps.
type serviceRange struct {
	*services.ServiceRange
	known  bool // which CIDRs there are: given, or told
	untold bool // something changed since the writer was told

	apiServers []netip.Addr // wherever one may be
}

// newServiceRange takes the CIDRs that are given; nil: the API will tell.
func newServiceRange(given []netip.Prefix) serviceRange {
	return serviceRange{ServiceRange: services.NewServiceRange(given), known: given != nil, untold: true}
}

func (e *engine) cidrChanged(ev watch.Event) {
	c, _ := ev.Object.(*networkingv1.ServiceCIDR)
	e.serviceRange.SetCIDR(ev.Name.Name, c)
	e.rangeChanged()
}

func (e *engine) serviceOfOthers(name types.NamespacedName, svc *corev1.Service) {
	if e.serviceRange.SetService(name, svc) {
		e.rangeChanged()
	}
}

// rangeChanged notes that something changed that the range is made of.
func (e *engine) rangeChanged() {
	e.serviceRange.untold = true
	e.queueRange()
}

// rangeIsDue reports whether the writer is to be told of the range: once all that Services have is written.
func (e *engine) rangeIsDue() bool {
	return e.serviceRange.known && e.serviceRange.untold && !e.pulse.appliedAt().IsZero()
}

func (e *engine) queueRange() {
	if e.rangeIsDue() {
		e.pulse.queue(time.Now())
		e.poke()
	}
}

// takeRange is what to tell the writer of, if anything. What this host has a
// net for by itself, and wherever an API server was ever known to be, is never
// refused, whatever somebody took for the Service range.
func (e *engine) takeRange() (ranges, others []netip.Prefix, due bool) {
	if !e.rangeIsDue() {
		return nil, nil, false
	}
	e.serviceRange.untold = false
	notOurs := slices.Clone(e.hostNets)
	for _, a := range slices.Concat(e.nodeIPs, e.serviceRange.apiServers) {
		notOurs = append(notOurs, netip.PrefixFrom(a, a.BitLen()))
	}
	ranges, others = e.serviceRange.Ranges(notOurs)
	return ranges, others, true
}
