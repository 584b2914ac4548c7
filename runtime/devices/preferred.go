package devices

import (
	"cmp"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// preferred returns the address that the kernel takes as source toward a prefix by a next hop, invalid if the node has none
// that is fit. It is what `ip route get` says.
func (c *chooser) preferred(h *Hop, to netip.Prefix) netip.Addr {
	d := c.byIndex[h.Device]
	switch {
	case h.Source.IsValid():
		return h.Source
	case d == nil:
		return netip.Addr{}
	case to.Addr().Is4():
		return c.preferred4(d, h.Gateway, h.Scope)
	}
	return c.preferred6(d, to)
}

// preferred4 is inet_select_addr (net/ipv4/devinet.c): the first primary address of the device in the gateway's net, else
// its first one, else one of its VRF, else one of another device, where lo comes first.
func (c *chooser) preferred4(d *device, gateway netip.Addr, scope uint8) (first netip.Addr) {
	for _, a := range d.addrs {
		if !a.Local.Is4() || a.Flags&unix.IFA_F_SECONDARY != 0 || min(a.Scope, unix.RT_SCOPE_HOST) > scope {
			continue
		}
		if !gateway.Is4() || a.Net.Contains(gateway) {
			return a.Local
		}
		if !first.IsValid() {
			first = a.Local
		}
	}
	if first.IsValid() {
		return first
	}
	vrf := c.vrf(d)
	for _, other := range c.inDomain(vrf) {
		for _, a := range other.addrs {
			if a.Local.Is4() && a.Flags&unix.IFA_F_SECONDARY == 0 && a.Scope != unix.RT_SCOPE_LINK && a.Scope <= scope {
				return a.Local
			}
		}
	}
	return netip.Addr{}
}

// vrf is the VRF that a device belongs to or is, nil without one.
func (c *chooser) vrf(d *device) *device {
	if m := c.byIndex[d.Master]; m != nil && m.Kind == "vrf" {
		return m
	}
	if d.Kind == "vrf" {
		return d
	}
	return nil
}

// inDomain are the devices whose addresses a device may use: those of its VRF, which itself comes first.
func (c *chooser) inDomain(vrf *device) (out []*device) {
	if vrf != nil {
		out = append(out, vrf)
	}
	for _, d := range c.devices {
		if d != vrf && c.vrf(d) == vrf {
			out = append(out, d)
		}
	}
	return out
}

// preferred6 is the kernel's choice of RFC 6724 (ipv6_dev_get_saddr in net/ipv6/addrconf.c), as far as addresses of more
// than the link are concerned, with the default table of labels. Public addresses win over temporary ones whatever
// use_tempaddr says: the flows of others must outlive the day. Among equals the first one wins.
func (c *chooser) preferred6(d *device, to netip.Prefix) (found netip.Addr) {
	type merit struct {
		label, public bool // of the destination's label; not temporary
		match         int  // bits in common with the destination
	}
	var best merit
	for _, a := range c.candidates6(d) {
		this := merit{
			label6(a.Local) == label6(to.Addr()), a.Flags&unix.IFA_F_TEMPORARY == 0,
			min(a.Net.Bits(), commonBits(a.Local, to.Addr())),
		}
		better := cmp.Or(order(this.label, best.label), order(this.public, best.public), cmp.Compare(this.match, best.match)) > 0
		if !found.IsValid() || better {
			found, best = a.Local, this
		}
	}
	return found
}

// order is 1 where only the first holds, -1 where only the second does.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// candidates6 are the addresses that one is chosen from, whatever the destination: the kernel prefers those that are not
// deprecated, then those of the device by which the packet leaves. They are found once for a device.
func (c *chooser) candidates6(d *device) []Addr {
	if d.six == nil {
		groups := make([][]Addr, 4)
		for _, other := range c.inDomain(c.vrf(d)) {
			for _, a := range other.addrs {
				if !usable6(a) {
					continue
				}
				g := 0
				if a.Flags&unix.IFA_F_DEPRECATED != 0 {
					g += 2
				}
				if other != d {
					g++
				}
				groups[g] = append(groups[g], a)
			}
		}
		d.six = []Addr{}
		for _, g := range slices.Backward(groups) {
			if len(g) > 0 {
				d.six = g
			}
		}
	}
	return d.six
}

func usable6(a Addr) bool {
	tentative := a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0
	return a.Local.Is6() && isGlobal(a.Local) && !tentative && a.Flags&unix.IFA_F_DADFAILED == 0
}

// uniqueLocal are the addresses that RFC 4193 gives to private networks.
var uniqueLocal = netip.MustParsePrefix("fc00::/7")

// labels6 is ip6addrlbl_init_table (net/ipv6/addrlabel.c), the longest prefix first.
var labels6 = []struct {
	prefix netip.Prefix
	label  int
}{
	{netip.MustParsePrefix("2001:10::/28"), 7},
	{netip.MustParsePrefix("2001::/32"), 6},
	{netip.MustParsePrefix("2002::/16"), 2},
	{uniqueLocal, 5},
}

func label6(a netip.Addr) int {
	for _, l := range labels6 {
		if l.prefix.Contains(a) {
			return l.label
		}
	}
	return 1
}

// commonBits is how many leading bits two IPv6 addresses share.
func commonBits(a, b netip.Addr) int {
	x, y := a.As16(), b.As16()
	for i := range x {
		for bit := range 8 {
			if (x[i]^y[i])&(0x80>>bit) != 0 {
				return i*8 + bit
			}
		}
	}
	return 128
}
