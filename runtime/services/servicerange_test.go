package services

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func cidr(cidrs ...string) *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}}
}

func TestServiceRange(t *testing.T) {
	labelled := func(ips ...string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{LabelProxyName: ""}},
			Spec: corev1.ServiceSpec{ClusterIP: ips[0], ClusterIPs: ips}}
	}
	plain := labelled("10.96.0.7")
	plain.Labels = nil
	name := types.NamespacedName{Namespace: "a", Name: "b"}
	host := netip.MustParsePrefix("10.96.3.3/24")
	for _, tc := range []struct {
		name   string
		given  []string
		tell   func(r *ServiceRange)
		ranges []string
		others []string
	}{
		{"nothing is known", nil, func(r *ServiceRange) {}, nil, nil},
		{"what is given", []string{"10.96.0.0/12"}, func(r *ServiceRange) {}, []string{"10.96.0.0/12"}, []string{"10.96.3.0/24"}},
		{"ServiceCIDRs of both families, one of them twice", nil, func(r *ServiceRange) {
			r.SetCIDR("kubernetes", cidr("10.96.0.0/16", "fd00:96::/112"))
			r.SetCIDR("more", cidr("10.200.0.0/24", "10.96.0.0/16"))
		}, []string{"10.96.0.0/16", "10.200.0.0/24", "fd00:96::/112"}, []string{"10.96.3.0/24"}},
		{"one that changes, and one that goes", nil, func(r *ServiceRange) {
			r.SetCIDR("kubernetes", cidr("10.96.0.0/16"))
			r.SetCIDR("more", cidr("10.200.0.0/24"))
			r.SetCIDR("more", cidr("10.201.0.0/24"))
			r.SetCIDR("kubernetes", nil)
		}, []string{"10.201.0.0/24"}, nil},
		{"one that is smaller than a net of the host's", nil, func(r *ServiceRange) { r.SetCIDR("kubernetes", cidr("10.96.3.128/25")) },
			[]string{"10.96.3.128/25"}, []string{"10.96.3.0/24"}},
		{"all addresses of a family", nil, func(r *ServiceRange) { r.SetCIDR("kubernetes", cidr("0.0.0.0/0", "10.200.0.0/24")) }, []string{"10.200.0.0/24"}, nil},
		{"nonsense beside a CIDR", nil, func(r *ServiceRange) { r.SetCIDR("kubernetes", cidr("x", "10.200.0.0/24")) }, []string{"10.200.0.0/24"}, nil},
		{"another proxy's Service", []string{"10.96.0.0/24", "fd00:96::/112"}, func(r *ServiceRange) {
			r.SetService(name, labelled("10.96.0.7", "fd00:96::7"))
			r.SetService(types.NamespacedName{Name: "elsewhere"}, labelled("10.97.0.1"))
			r.SetService(types.NamespacedName{Name: "headless"}, labelled("None"))
		}, []string{"10.96.0.0/24", "fd00:96::/112"}, []string{"10.96.0.7/32", "fd00:96::7/128"}},
		{"another proxy's Service that went", []string{"10.96.0.0/24"}, func(r *ServiceRange) {
			r.SetService(name, labelled("10.96.0.7"))
			r.SetService(name, nil)
		}, []string{"10.96.0.0/24"}, nil},
		{"another proxy's Service that became ours", []string{"10.96.0.0/24"}, func(r *ServiceRange) {
			if !r.SetService(name, labelled("10.96.0.7")) || r.SetService(name, labelled("10.96.0.7")) || !r.SetService(name, plain) || r.SetService(name, plain) {
				t.Error("what makes a difference is told wrongly")
			}
		}, []string{"10.96.0.0/24"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			given, err := ParseServiceCIDRs(tc.given)
			if err != nil {
				t.Fatal(err)
			}
			r := NewServiceRange(given)
			tc.tell(r)
			ranges, others := r.Ranges([]netip.Prefix{host, netip.MustParsePrefix("192.0.2.1/24")})
			if got := texts(ranges); !slices.Equal(got, tc.ranges) {
				t.Errorf("ranges %v, want %v", got, tc.ranges)
			}
			if got := texts(others); !slices.Equal(got, tc.others) {
				t.Errorf("others %v, want %v", got, tc.others)
			}
		})
	}
}

func texts(list []netip.Prefix) (out []string) {
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}

func TestParseServiceCIDRs(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   []string
		want []string
		ok   bool
	}{
		{"nothing: the API will tell", nil, nil, true},
		{"two, one with blanks and host bits", []string{"10.96.0.1/12 ", "fd00::/112"}, []string{"10.96.0.0/12", "fd00::/112"}, true},
		{"none", []string{"none"}, nil, true},
		{"none and one", []string{"none", "10.96.0.0/12"}, nil, false},
		{"an address", []string{"10.96.0.1"}, nil, false},
		{"every address", []string{"0.0.0.0/0"}, nil, false},
	} {
		got, err := ParseServiceCIDRs(tc.in)
		if tc.name == "none and one" && (err == nil || !strings.Contains(err.Error(), "none alone")) {
			t.Errorf("%s: %v doesn't say that none is to be alone", tc.name, err)
		}
		if (err == nil) != tc.ok || !slices.Equal(texts(got), tc.want) {
			t.Errorf("%s: %v, %v", tc.name, got, err)
		}
		if given := got != nil; tc.ok && given != (tc.in != nil) {
			t.Errorf("%s: taken as given: %v", tc.name, given)
		}
	}
}
