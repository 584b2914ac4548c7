package devices

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// arphrdIP6GRE is ARPHRD_IP6GRE, ARPHRD_RAWIP likewise (include/uapi/linux/if_arp.h): package unix lacks the latter.
const (
	arphrdIP6GRE = 823
	arphrdRawIP  = 519
)

// hardware are names of hardware types that a node may have and that the packet path can't read.
var hardware = map[uint16]string{
	unix.ARPHRD_INFINIBAND: "InfiniBand", unix.ARPHRD_IEEE1394: "FireWire", unix.ARPHRD_IEEE80211: "IEEE 802.11",
	unix.ARPHRD_SLIP: "SLIP", unix.ARPHRD_FCFABRIC: "Fibre Channel",
}

// strangeHeader returns why the packets of a device can't be read, "" if they begin with an Ethernet or an IP header. The
// kernel has the same list for packets without a link-layer header: dev_is_mac_header_xmit (include/linux/if_arp.h).
func (l Link) strangeHeader() string {
	switch l.Type {
	case unix.ARPHRD_ETHER:
		return ""
	case unix.ARPHRD_NONE, arphrdRawIP, unix.ARPHRD_PPP, unix.ARPHRD_TUNNEL, unix.ARPHRD_TUNNEL6, unix.ARPHRD_SIT,
		unix.ARPHRD_IPGRE, arphrdIP6GRE:
		if l.OuterHeader {
			return "GRE without a fixed remote address: packets begin with the outer header"
		}
		return ""
	}
	if name, ok := hardware[l.Type]; ok {
		return fmt.Sprintf("packets have a header of %s, not of Ethernet", name)
	}
	return fmt.Sprintf("packets have an unknown header (hardware type %d)", l.Type)
}
