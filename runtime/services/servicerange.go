package services

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ServiceRange knows which addresses Services are given, so that those of them
// that no Service has can be refused: they must never leave the node by the
// default route (KEP-1880 on ServiceCIDRs). It is
// given objects, as a Table is. Not safe for concurrent use.
type ServiceRange struct {
	cidrs  map[string][]netip.Prefix
	others map[types.NamespacedName][]netip.Addr
}

// NewServiceRange makes one that knows of no ServiceCIDR, or of those that are given.
func NewServiceRange(given []netip.Prefix) *ServiceRange {
	return &ServiceRange{
		cidrs:  map[string][]netip.Prefix{"": given}, // no object has this name
		others: map[types.NamespacedName][]netip.Addr{},
	}
}

// SetCIDR takes a ServiceCIDR that came, changed or, with nil, went.
func (r *ServiceRange) SetCIDR(name string, c *networkingv1.ServiceCIDR) {
	delete(r.cidrs, name)
	if c == nil {
		return
	}
	for _, s := range c.Spec.CIDRs {
		if p, ok := parsePrefix(s); ok && p.Bits() > 0 { // all of a family would be refused
			r.cidrs[name] = append(r.cidrs[name], p)
		}
	}
}

// SetService takes a Service that came, changed or, with nil, went, and reports
// whether that makes a difference: the addresses of one that another proxy
// serves are not ours to refuse.
func (r *ServiceRange) SetService(name types.NamespacedName, svc *corev1.Service) (changed bool) {
	var addrs []netip.Addr
	if svc != nil {
		addrs = addressesOfOthers(svc)
	}
	if slices.Equal(r.others[name], addrs) {
		return false
	}
	delete(r.others, name)
	if len(addrs) > 0 {
		r.others[name] = addrs
	}
	return true
}

func addressesOfOthers(svc *corev1.Service) (addrs []netip.Addr) {
	if _, other := svc.Labels[LabelProxyName]; !other {
		return nil
	}
	for _, s := range append([]string{svc.Spec.ClusterIP}, svc.Spec.ClusterIPs...) {
		if a, ok := parseAddr(s); ok && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// Ranges are the addresses that Services are given, and those that overlap them
// and are not ours to refuse: another proxy's, and notOurs. Both are sorted.
func (r *ServiceRange) Ranges(notOurs []netip.Prefix) (ranges, others []netip.Prefix) {
	for _, list := range r.cidrs {
		ranges = append(ranges, list...)
	}
	slices.SortFunc(ranges, netip.Prefix.Compare)
	ranges = slices.Compact(ranges)
	all := slices.Clone(notOurs)
	for _, list := range r.others {
		for _, a := range list {
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for _, o := range all {
		if slices.ContainsFunc(ranges, o.Overlaps) {
			others = append(others, o.Masked())
		}
	}
	slices.SortFunc(others, netip.Prefix.Compare)
	return ranges, slices.Compact(others)
}

// ParseServiceCIDRs reads CIDRs as --service-cidr has them. "none" alone is none.
func ParseServiceCIDRs(list []string) ([]netip.Prefix, error) {
	if len(list) == 1 && strings.TrimSpace(list[0]) == "none" {
		return []netip.Prefix{}, nil
	}
	var out []netip.Prefix
	for _, s := range list {
		p, ok := parsePrefix(s)
		if !ok && strings.TrimSpace(s) == "none" {
			return nil, fmt.Errorf("%q beside others: want CIDRs, or none alone", s)
		}
		if !ok {
			return nil, fmt.Errorf("%q: want a CIDR as 10.96.0.0/12, or none", s)
		}
		if p.Bits() == 0 {
			return nil, fmt.Errorf("%q: that is every address, and all of them would be refused", s)
		}
		out = append(out, p)
	}
	return out, nil
}
