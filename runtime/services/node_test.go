package services

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestNodePortAddresses(t *testing.T) {
	host := ips("127.0.0.1", "::1", "192.168.0.2", "192.168.0.3", "10.1.0.1", "169.254.20.10", "fe80::1", "fd00:9::2", "2001:db8::2")
	nodeIPs := ips("192.168.0.2", "192.168.0.3", "fd00:9::2")
	for _, tc := range []struct {
		name    string
		values  []string
		nodeIPs []netip.Addr
		want    string
	}{
		{"none given: all but IPv6 link-local", nil, nodeIPs, "10.1.0.1 127.0.0.1 169.254.20.10 192.168.0.2 192.168.0.3 ::1 2001:db8::2 fd00:9::2"},
		{"everything given", []string{"0.0.0.0/0", "::/0"}, nodeIPs, "10.1.0.1 127.0.0.1 169.254.20.10 192.168.0.2 192.168.0.3 ::1 2001:db8::2 fd00:9::2"},
		{"one family given: all of the other", []string{"192.168.0.0/24"}, nodeIPs, "192.168.0.2 192.168.0.3 ::1 2001:db8::2 fd00:9::2"},
		{"both given", []string{"192.168.0.2/32", " 2001:db8::/32 "}, nodeIPs, "192.168.0.2 2001:db8::2"},
		{"one that no address is in", []string{"198.51.100.0/24", "2001:db8:9::/48"}, nodeIPs, ""},
		{"part of loopback", []string{"127.9.9.9/32", "::1/128"}, nodeIPs, "127.0.0.1 ::1"},
		{"loopback in something larger", []string{"126.0.0.0/7", "::/127"}, nodeIPs, "127.0.0.1 ::1"},
		{"IPv6 link-local by name", []string{"10.0.0.0/8", "fe80::/10"}, nodeIPs, "10.1.0.1 fe80::1"},
		{"primary: the first of each family", []string{"primary"}, nodeIPs, "192.168.0.2 fd00:9::2"},
		{"primary in one family", []string{"primary"}, ips("192.168.0.3"), "192.168.0.3"},
		{"primary of a node without addresses", []string{"primary"}, nil, ""},
		{"primary of a node that is known by loopback only", []string{"primary"}, ips("127.0.0.1", "fd00:9::2"), "fd00:9::2"},
		{"primary and a CIDR of one family: no more of the other", []string{"primary", "10.0.0.0/8"}, nodeIPs, "10.1.0.1 192.168.0.2 fd00:9::2"},
		{"localhost", []string{"localhost"}, nodeIPs, "127.0.0.1 ::1"},
		{"primary and localhost", []string{"primary", "localhost"}, nodeIPs, "127.0.0.1 192.168.0.2 ::1 fd00:9::2"},
		{"localhost and a CIDR", []string{"localhost", "192.168.0.3/32"}, nodeIPs, "127.0.0.1 192.168.0.3 ::1"},
		{"all", []string{"all"}, nodeIPs, "10.1.0.1 127.0.0.1 169.254.20.10 192.168.0.2 192.168.0.3 ::1 2001:db8::2 fd00:9::2"},
		{"all makes primary no narrower", []string{"primary", "all"}, nodeIPs, "10.1.0.1 127.0.0.1 169.254.20.10 192.168.0.2 192.168.0.3 ::1 2001:db8::2 fd00:9::2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := ParseNodePortAddresses(tc.values)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Trim(fmt.Sprint(n.Select(host, tc.nodeIPs)), "[]"); got != tc.want {
				t.Errorf("selected are %s, want %s", got, tc.want)
			}
		})
	}
}

func TestParseNodePortAddressesErrors(t *testing.T) {
	for _, v := range []string{"", "192.168.0.1", "192.168.0.0/33", "primary/24", "Localhost", "everything", "fe80::1%eth0/64"} {
		if _, err := ParseNodePortAddresses([]string{v}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", v)) {
			t.Errorf("%q: %v", v, err)
		}
	}
}

// Every use of an address sees it in one form.
func TestSelectAddressesOfAnyForm(t *testing.T) {
	host := []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("10.0.0.1"), {}, netip.IPv6Unspecified(), netip.MustParseAddr("2001:db8::1%eth0")}
	if got := fmt.Sprint(NodePortAddresses{}.Select(host, nil)); got != "[10.0.0.1 2001:db8::1]" {
		t.Errorf("selected are %s", got)
	}
}

func TestNodeIPs(t *testing.T) {
	obj := &corev1.Node{}
	obj.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "192.168.0.9"}, {Type: corev1.NodeExternalIP, Address: "198.51.100.1"},
		{Type: corev1.NodeInternalIP, Address: "no"}, {Type: corev1.NodeInternalIP, Address: "192.168.0.2"}, {Type: corev1.NodeExternalIP, Address: "2001:db8::2"}}
	host := ips("192.168.0.2", "192.168.0.9", "198.51.100.1", "127.0.0.1", "2001:db8::2", "2001:db8::3")
	nodeIPs := NodeIPs(obj)
	if want := ips("192.168.0.2", "198.51.100.1", "2001:db8::2"); !slices.Equal(nodeIPs, want) {
		t.Errorf("the node's addresses are %v, want %v", nodeIPs, want)
	}
	if got, want := (NodePortAddresses{Primary: true}).Select(host, nodeIPs), ips("192.168.0.2", "2001:db8::2"); !slices.Equal(got, want) {
		t.Errorf("selected are %v, want %v", got, want)
	}
	if got := len(NodePortAddresses{}.Select(host, nodeIPs)); got != len(host) {
		t.Errorf("%d addresses, want %d", got, len(host))
	}
}

func FuzzParseNodePortAddresses(f *testing.F) {
	for _, s := range []string{"primary", "primary,localhost", "10.0.0.0/8", "::/0,0.0.0.0/0", "::ffff:10.0.0.0/104", "127.0.0.0/08", "1.2.3.4/-1"} {
		f.Add(s)
	}
	host := ips("127.0.0.1", "::1", "192.168.0.2", "fe80::1")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseNodePortAddresses(strings.Split(s, ","))
		if err != nil {
			return
		}
		for _, p := range n.CIDRs {
			if p != p.Masked() || p.Addr().Is4In6() && p.Bits() >= 96 {
				t.Errorf("%v of %q is not in the one form", p, s)
			}
		}
		n.Select(host, host)
	})
}

func FuzzParseAddr(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "010.000.0.01", "::ffff:010.0.0.1", "fe80::1%eth0", "1.2.3", "....", ":.", "0.0.0.0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, ok := parseAddr(s)
		if !ok {
			return
		}
		if a.Is4In6() || a.Zone() != "" {
			t.Errorf("%q is read as %v", s, a)
		}
		if again, ok := parseAddr(a.String()); !ok || again != a {
			t.Errorf("%q is read as %v, and that as %v", s, a, again)
		}
	})
}
