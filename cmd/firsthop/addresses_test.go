package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bootstrap"
)

// many are n distinct addresses, short ones: Linux takes no argument and no variable over 128 KiB.
func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "9.0.%d.%d:1,", i>>8, i&255)
	}
	return b.String()
}

// TestAddressThatIsWrongIsQuotedAndChangesNothing gives every kind of wrong value once by flag and once by environment, to a
// fresh node and to one that serves.
func TestAddressThatIsWrongIsQuotedAndChangesNothing(t *testing.T) {
	const (
		byServices  = iota // the Service addresses are at fault
		byEndpoints        // the endpoints are at fault
	)
	rows := []struct {
		name                string
		services, endpoints string
		fault               int
		quoted              string // the entry, as it was given
		says                string
	}{
		{"Service addresses of only separators", ", ,,", server4, byServices, ", ,,", "only separators"},
		{"endpoints of only separators", vip4, ",", byEndpoints, ",", "only separators"},
		{"an empty Service entry in the middle", vip4 + ",," + vip6, servers, byServices, "", "empty"},
		{"an empty endpoint in the middle", vip4, server4 + ", ,127.0.0.2:6443", byEndpoints, "", "empty"},
		{"an empty endpoint at the beginning", vip4, "," + server4, byEndpoints, "", "empty"},
		{"two commas at the end", vip4, server4 + ",,", byEndpoints, "", "empty"},
		{"a Service port 0", "10.96.0.1:0", server4, byServices, "10.96.0.1:0", "port 0"},
		{"an endpoint port 0", vip4, "127.0.0.1:0", byEndpoints, "127.0.0.1:0", "port 0"},
		{"a Service port 65536", "10.96.0.1:65536", server4, byServices, "10.96.0.1:65536", "65535"},
		{"an endpoint port 65536", vip4, "[::1]:65536", byEndpoints, "[::1]:65536", "65535"},
		{"a negative port", vip4, "127.0.0.1:-1", byEndpoints, "127.0.0.1:-1", "not a number"},
		{"a Service without a port", "10.96.0.1", server4, byServices, "10.96.0.1", "no port"},
		{"an endpoint without a port", vip4, "10.0.0.1", byEndpoints, "10.0.0.1", "no port"},
		{"an endpoint with a colon and no port", vip4, "10.0.0.1:", byEndpoints, "10.0.0.1:", "no port"},
		{"an IPv6 Service without brackets", "fd00:96::1", server6, byServices, "fd00:96::1", "brackets"},
		{"an IPv6 endpoint in brackets without a port", vip6, "[::1]", byEndpoints, "[::1]", "no port"},
		{"a zone in a Service", "[fe80::1%eth0]:443", server6, byServices, "[fe80::1%eth0]:443", "zone"},
		{"a zone in an endpoint", vip6, "[fe80::1%1]:6443", byEndpoints, "[fe80::1%1]:6443", "zone"},
		{"an IPv4 multicast Service", "224.0.0.1:443", server4, byServices, "224.0.0.1:443", "multicast"},
		{"an IPv6 multicast endpoint", vip6, "[ff02::1]:6443", byEndpoints, "[ff02::1]:6443", "multicast"},
		{"the unspecified IPv4 Service", "0.0.0.0:443", server4, byServices, "0.0.0.0:443", "unspecified"},
		{"the unspecified IPv6 endpoint", vip6, "[::]:6443", byEndpoints, "[::]:6443", "unspecified"},
		{"the unspecified IPv4 address in IPv6", vip4, "[::ffff:0.0.0.0]:6443", byEndpoints, "[::ffff:0.0.0.0]:6443", "unspecified"},
		{"the broadcast address", vip4, "255.255.255.255:6443", byEndpoints, "255.255.255.255:6443", "broadcast"},
		{"an IPv6 Service without an IPv6 endpoint", vips, server4, byServices, vip6, "IPv6"},
		{"an IPv4 Service without an IPv4 endpoint", vips, server6, byServices, vip4, "IPv4"},
		{"an IPv6 endpoint without an IPv6 Service", vip4, servers, byEndpoints, server6, "IPv6"},
		{"an IPv4 endpoint without an IPv4 Service", vip6, servers, byEndpoints, server4, "IPv4"},
		{"garbage for a Service", "not an address", server4, byServices, "not an address", "no port"},
		{"garbage for an endpoint", vip4, "300.1.2.3:6443", byEndpoints, "300.1.2.3:6443", "IPv4 address"},
		{"control characters", vip4, "10.0.0.1\t:6443\x01", byEndpoints, "10.0.0.1\t:6443\x01", "not a number"},
		{"a URL", vip4, "https://10.0.0.1:6443", byEndpoints, "https://10.0.0.1:6443", "URL"},
		{"10,000 Services", many(10_000), "9.0.0.1:2", byServices, "9.0.0.64:1", "10000 entries"},
		{"10,000 endpoints", vip4, many(10_000), byEndpoints, "9.0.3.232:1", "10000 entries"},
		{"the Service as its own endpoint", vip4, server4 + "," + vip4, byEndpoints, vip4, "itself"},
		{"the Service as its own endpoint, v4-mapped", vip4, "[::ffff:10.96.0.1]:443", byEndpoints, "10.96.0.1:443", "itself"},
		{"a host name for a Service", "kubernetes.default:443", server4, byServices, "kubernetes.default:443", "host name"},
		{"two Service ports and two endpoint ports", "10.96.0.1:443,10.96.0.1:6443", "127.0.0.1:6443,127.0.0.1:7443", byServices, "", "[443 6443]"},
	}
	fresh, serving := newNode(t), newNode(t)
	serving.serving()
	serving.init()
	for _, tc := range rows {
		for _, n := range []struct {
			name string
			node
		}{{"a fresh node", fresh}, {"a node that serves", serving}} {
			for _, by := range []struct {
				name    string
				names   [2]string
				line    []string
				variant []string
			}{
				{"flag", [2]string{"--service-ips", "--endpoints"}, []string{"init", "--service-ips", tc.services, "--endpoints", tc.endpoints}, nil},
				{"environment, best effort", [2]string{varVIPs, varServer}, []string{varVIPs + "=" + tc.services, varServer + "=" + tc.endpoints, "init", "--best-effort"}, nil},
			} {
				t.Run(tc.name+" by "+by.name+" on "+n.name, func(t *testing.T) {
					n := n.node
					n.T = t
					before := n.snapshot()
					r := n.run(by.line...).exits(bootstrap.ExitUsage).says(by.names[tc.fault], tc.says)
					if want := fmt.Sprintf("%q", tc.quoted); tc.quoted != "" || tc.says == "empty" {
						r.says(want)
					}
					if len(r.stdout)+len(r.stderr) > 2000 {
						t.Errorf("it says %d bytes", len(r.stdout)+len(r.stderr))
					}
					n.unchanged(before)
				})
			}
		}
	}
}

func TestAddressFormsThatAreHarmlessAreAccepted(t *testing.T) {
	n := newNode(t)
	n.serving()
	for _, tc := range []struct {
		name string
		line []string
	}{
		{"a trailing comma", []string{varVIPs + "=" + vips + ",", varServer + "=" + servers + ",", "init"}},
		{"blanks around entries", []string{varVIPs + "= " + vip4 + " ,\t" + vip6 + " \n", varServer + "=  " + server4 + " , " + server6, "init"}},
		{"duplicates", []string{varVIPs + "=" + vips + "," + vips, varServer + "=" + servers + "," + servers, "init"}},
		{"a v4-mapped Service", []string{varVIPs + "=[::ffff:10.96.0.1]:443," + vip6, varServer + "=" + servers, "init"}},
		{"a longer way to write the same", []string{varVIPs + "=10.96.0.1:443,[fd00:0096:0::1]:443", varServer + "=" + servers, "init"}},
		{"the flags before the variables", []string{varVIPs + "=10.96.0.9:443", varServer + "=garbage", "init", "--service-ips", vips, "--endpoints", servers}},
		{"an empty flag beside the variables", []string{varVIPs + "=" + vips, varServer + "=" + servers, "init", "--service-ips", "", "--endpoints", " "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n.T = t
			r := n.run(append(tc.line, "--persist", "off", "-o", "json")...).exits(0).report()
			if got := len(r.Services); got != 2 {
				t.Errorf("%d Services, want 2: %+v", got, r.Services)
			}
			for _, s := range r.Services {
				if len(s.Frontends) != 1 || len(s.Backends) != 1 {
					t.Errorf("%s: %v -> %v", s.Name, s.Frontends, s.Backends)
				}
			}
			for _, want := range []string{vip4, vip6} {
				found := false
				for _, p := range r.Proofs {
					found = found || p.Service == netip.MustParseAddrPort(want) && p.OK
				}
				if !found {
					t.Errorf("%s isn't proven: %+v", want, r.Proofs)
				}
			}
		})
	}
}

func TestAddressVariableThatIsEmptyMeansDiscovery(t *testing.T) {
	n := newNode(t)
	for _, line := range [][]string{
		{"init"},
		{varVIPs + "=", varServer + "=", "init"},
		{varVIPs + "= ", varServer + "=\t\n", "init"},
	} {
		n.run(append(line, "--root", n.Dir, "--persist", "off")...).exits(bootstrap.ExitNotFound).says(varVIPs, varServer)
	}
}
