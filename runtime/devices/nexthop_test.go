package devices

import (
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// request sends a message that package netlink has no function for.
func (r *rig) request(kind int, header []byte, attrs ...*nl.RtAttr) {
	r.t.Helper()
	must(r.t, r.l.Do(func() error {
		req := nl.NewNetlinkRequest(kind, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
		for _, a := range attrs {
			header = append(header, a.Serialize()...)
		}
		req.AddRawData(header)
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	}))
}

func (r *rig) nexthop(id uint32, device int, gateway string) {
	r.t.Helper()
	r.request(unix.RTM_NEWNEXTHOP, []byte{unix.AF_INET, 0, unix.RTPROT_STATIC, 0, 0, 0, 0, 0},
		nl.NewRtAttr(nhaID, nl.Uint32Attr(id)), nl.NewRtAttr(nhaOIF, nl.Uint32Attr(uint32(device))),
		nl.NewRtAttr(nhaGateway, netip.MustParseAddr(gateway).AsSlice()))
}

func (r *rig) nexthopGroup(id uint32, members ...uint32) {
	r.t.Helper()
	var group []byte
	for _, m := range members {
		group = append(append(group, nl.Uint32Attr(m)...), 0, 0, 0, 0)
	}
	r.request(unix.RTM_NEWNEXTHOP, []byte{unix.AF_UNSPEC, 0, unix.RTPROT_STATIC, 0, 0, 0, 0, 0},
		nl.NewRtAttr(nhaID, nl.Uint32Attr(id)), nl.NewRtAttr(nhaGroup, group))
}

func (r *rig) routeByNexthop(prefix string, id uint32) {
	r.t.Helper()
	p := netip.MustParsePrefix(prefix)
	header := []byte{unix.AF_INET, byte(p.Bits()), 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0}
	r.request(unix.RTM_NEWROUTE, header, nl.NewRtAttr(unix.RTA_DST, p.Addr().AsSlice()), nl.NewRtAttr(rtaNH, nl.Uint32Attr(id)))
}
