package lab_test

import (
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/firsthop/firsthop/test/lab"
)

func TestHostIsANamespaceOfTheLab(t *testing.T) {
	lab.VerifyNoLeaks(t)
	l := lab.New(t)
	h, err := l.AddHost("router")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Link(func(nl *netlink.Handle) error {
		return nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a.1"}, PeerName: "b.1"})
	}); err != nil {
		t.Fatal(err)
	}
	if err := l.Sysctl("net/ipv4/conf/a.1/rp_filter", "1"); err != nil {
		t.Error(err)
	}
	if err := h.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		t.Error(err)
	}
	if err := h.Link(func(nl *netlink.Handle) error {
		links, err := nl.LinkList()
		if len(links) != 1 {
			t.Errorf("a new host has %d devices, want its loopback alone", len(links))
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}
