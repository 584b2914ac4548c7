package oracle

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	netutils "k8s.io/utils/net"

	"github.com/firsthop/firsthop/runtime/services"
)

// Difference is where runtime/services does something else than kube-proxy on purpose.
type Difference struct {
	Name, Reason string
	// Rewrite changes a world so that kube-proxy does with it what we do with the world as it was, as far as this
	// difference goes. It tells whether there was anything to change.
	Rewrite func(w *World) bool
	// Pick, if not nil, chooses from what kube-proxy does before and after Rewrite. Else it is all of the latter.
	Pick func(before, after Result) Result
}

// Differences are all there are. Rewrites are made in this order.
var Differences = []Difference{
	{
		Name:    "a slice with the label service-proxy-name",
		Reason:  "the label is copied to slices from their Service, which both leave alone: there is no reason to hold endpoints of a Service that is another proxy's",
		Rewrite: dropSlices,
	},
	{
		Name:    "a port without a protocol",
		Reason:  "the API's default is TCP; kube-proxy dereferences a nil protocol of a slice, and takes an empty one of a Service for a protocol of its own",
		Rewrite: fillInProtocols,
	},
	{
		Name:    "session affinity without a timeout, or with one that is out of range",
		Reason:  "a timeout that the API refuses becomes the nearest that it knows: the default for none, zero and less, a day for more; kube-proxy dereferences a nil one and uses the others as they are",
		Rewrite: fillInTimeouts,
	},
	{
		Name:    "a source range that is not a CIDR",
		Reason:  "who wrote it wanted to keep somebody out: it lets nobody in, and still limits; kube-proxy ignores it, and lets everybody in where it was the only one",
		Rewrite: closeRanges,
	},
	{
		Name:    "an external or load balancer IP that is every host's own",
		Reason:  "loopback, unspecified and multicast addresses, and link-local external IPs, mean something else in every network namespace: a Service must not take them over (CVE-2020-8554 and its kind)",
		Rewrite: dropOwnFrontends,
	},
	{
		Name:    "an endpoint that is every host's own, of the other family, or no address",
		Reason:  "such an endpoint leads a client back to itself, or nowhere; the API refuses them, objects that were stored before do not go away",
		Rewrite: dropBadEndpoints,
	},
	{
		Name:    "an address and port that several endpoints have",
		Reason:  "one that is not terminating wins, then a ready one; kube-proxy takes the last that is not terminating of the slices in random order",
		Rewrite: dropDuplicates,
	},
	{
		Name:    "the API service with internalTrafficPolicy Local and no endpoint here",
		Reason:  "the API service is never left empty, so cluster traffic takes it wherever its endpoints are; kube-proxy drops it",
		Rewrite: openAPIService,
		Pick:    pickServed,
	},
}

func dropSlices(w *World) bool {
	n := len(w.Slices)
	w.Slices = slices.DeleteFunc(w.Slices, func(s *discoveryv1.EndpointSlice) bool {
		_, there := s.Labels[services.LabelProxyName]
		return there
	})
	return len(w.Slices) < n
}

func fillInProtocols(w *World) (changed bool) {
	for _, svc := range w.Services {
		for i := range svc.Spec.Ports {
			if p := &svc.Spec.Ports[i]; p.Protocol == "" {
				p.Protocol, changed = corev1.ProtocolTCP, true
			}
		}
	}
	for _, s := range w.Slices {
		for i := range s.Ports {
			if p := &s.Ports[i]; p.Protocol == nil || *p.Protocol == "" {
				p.Protocol, changed = new(corev1.ProtocolTCP), true
			}
		}
	}
	return changed
}

func fillInTimeouts(w *World) (changed bool) {
	const most = 86400 // the API's limit: MaxClientIPServiceAffinitySeconds
	for _, svc := range w.Services {
		if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
			continue
		}
		seconds := int32(corev1.DefaultClientIPServiceAffinitySeconds)
		if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			given := *c.ClientIP.TimeoutSeconds
			if given > 0 && given <= most {
				continue
			}
			if given > most {
				seconds = most
			}
		}
		changed = true
		svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	return changed
}

// Nobody has these addresses. A range of them limits a frontend and lets nobody in; a Result does not have them.
var (
	nobody4 = netip.MustParsePrefix("255.255.255.255/32")
	nobody6 = netip.MustParsePrefix("::/128")
)

func closeRanges(w *World) (changed bool) {
	for _, svc := range w.Services {
		ranges := svc.Spec.LoadBalancerSourceRanges
		for i, r := range ranges {
			if r = strings.TrimSpace(r); r == "" {
				continue
			}
			if _, _, err := netutils.ParseCIDRSloppy(r); err != nil {
				ranges[i], changed = nobody4.String(), true
				svc.Spec.LoadBalancerSourceRanges = append(svc.Spec.LoadBalancerSourceRanges, nobody6.String())
			}
		}
	}
	return changed
}

// parse reads an address as kube-proxy does.
func parse(s string) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(s))
	return a.Unmap(), ok
}

// isOwn tells whether an address means something else in every network namespace, or is no single host's.
func isOwn(a netip.Addr) bool {
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a == nobody4.Addr()
}

func dropOwnFrontends(w *World) (changed bool) {
	for _, svc := range w.Services {
		for i, s := range svc.Spec.ExternalIPs {
			if a, ok := parse(s); ok && (isOwn(a) || a.IsLinkLocalUnicast()) {
				// An entry it stays: a Service with any has an externalTrafficPolicy, even if kube-proxy skips it.
				svc.Spec.ExternalIPs[i], changed = "", true
			}
		}
		lb := &svc.Status.LoadBalancer
		lb.Ingress = slices.DeleteFunc(lb.Ingress, func(in corev1.LoadBalancerIngress) bool {
			a, ok := parse(in.IP)
			bad := ok && isOwn(a)
			changed = changed || bad
			return bad
		})
	}
	return changed
}

func dropBadEndpoints(w *World) (changed bool) {
	for _, s := range w.Slices {
		if s.AddressType == discoveryv1.AddressTypeFQDN {
			continue // ignored by both
		}
		is4 := s.AddressType == discoveryv1.AddressTypeIPv4
		s.Endpoints = slices.DeleteFunc(s.Endpoints, func(ep discoveryv1.Endpoint) bool {
			if len(ep.Addresses) == 0 {
				return false // ignored by both
			}
			a, ok := parse(ep.Addresses[0])
			bad := !ok || a.Is4() != is4 || isOwn(a) || a.IsLinkLocalUnicast()
			changed = changed || bad
			return bad
		})
	}
	return changed
}

// openAPIService makes kube-proxy's cluster traffic what it is under the policy Cluster.
func openAPIService(w *World) (changed bool) {
	for _, svc := range w.Services {
		policy := svc.Spec.InternalTrafficPolicy
		if nameOf(svc) == services.APIService && policy != nil && *policy == corev1.ServiceInternalTrafficPolicyLocal {
			svc.Spec.InternalTrafficPolicy, changed = new(corev1.ServiceInternalTrafficPolicyCluster), true
		}
	}
	return changed
}

// pickServed keeps the policy Local for those ports of the API service that have an endpoint here.
func pickServed(before, after Result) Result {
	out := Result{}
	for key, p := range after {
		local := before[key]
		for _, r := range local.Frontends {
			if r.Kind == services.ClusterIP && len(r.Inside.Endpoints) > 0 {
				p = local
			}
		}
		out[key] = p
	}
	return out
}
