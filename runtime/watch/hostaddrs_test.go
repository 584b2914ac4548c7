package watch

import (
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/firsthop/firsthop/test/lab"
)

// With IPVS, kube-proxy gives every cluster IP to a device of the host: they are no addresses of node ports.
func TestHostAddrsWithoutTheIPVSDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l := lab.New(t)
	var before, after []netip.Prefix
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
		after, err = hostAddrs()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"192.0.2.7/24", "2001:db8::7/64", "127.0.0.1/8"} {
		if !slices.Contains(before, netip.MustParsePrefix(a)) {
			t.Errorf("%s is not among the host's: %v", a, before)
		}
	}
	if slices.Contains(before, netip.MustParsePrefix("fe80::7/64")) {
		t.Errorf("a link-local address is among the host's: %v", before)
	}
	if !slices.Equal(before, after) {
		t.Errorf("with kube-ipvs0 the host has %v, without %v", after, before)
	}
}
