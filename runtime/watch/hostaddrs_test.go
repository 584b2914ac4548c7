package watch

import (
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/firsthop/firsthop/test/lab"
)

// With IPVS, kube-proxy and kube-router give every cluster IP to a device of the host: they are no addresses of node ports.
func TestHostAddrsWithoutDevicesOfServiceProxies(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l := lab.New(t)
	var before, after []HostAddr
	err := l.Do(func() error {
		add := func(name string, addrs ...string) error {
			link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
			if err := netlink.LinkAdd(link); err != nil {
				return err
			}
			for _, a := range addrs {
				addr, err := netlink.ParseAddr(a)
				if err != nil {
					return err
				}
				if err := netlink.AddrAdd(link, addr); err != nil {
					return err
				}
			}
			return netlink.LinkSetUp(link)
		}
		if err := add("eth7", "192.0.2.7/24", "2001:db8::7/64", "fe80::7/64"); err != nil {
			return err
		}
		var err error
		if before, err = hostAddrs(); err != nil {
			return err
		}
		if err := add("kube-ipvs0", "10.96.0.1/32", "10.96.0.10/32", "fd00:96::1/128"); err != nil {
			return err
		}
		if err := add("kube-dummy-if", "10.96.0.1/32", "10.96.0.11/32"); err != nil {
			return err
		}
		after, err = hostAddrs()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	at := func(a, device string) HostAddr { return HostAddr{netip.MustParsePrefix(a), device} }
	for _, a := range []HostAddr{at("192.0.2.7/24", "eth7"), at("2001:db8::7/64", "eth7"), at("127.0.0.1/8", "lo")} {
		if !slices.Contains(before, a) {
			t.Errorf("%v is not among the host's: %v", a, before)
		}
	}
	if slices.Contains(before, at("fe80::7/64", "eth7")) {
		t.Errorf("a link-local address is among the host's: %v", before)
	}
	if !slices.Equal(before, after) {
		t.Errorf("with the devices of Service proxies the host has %v, without %v", after, before)
	}
}
