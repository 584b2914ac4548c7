package netns

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addrs are the addresses of the calling thread's network namespace by which
// others may know it, so without loopback and link-local ones, device by device;
// secondary and temporary ones come last.
func Addrs() ([]netip.Addr, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // what comes meanwhile is for the next look
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var first, second []netip.Addr
	for _, a := range list {
		if a.IPNet == nil {
			continue
		}
		addr, _ := netip.AddrFromSlice(a.IP)
		switch {
		case !addr.IsGlobalUnicast() || a.Flags&unix.IFA_F_DADFAILED != 0: // unspecified, multicast, loopback, link-local
		case a.Flags&unix.IFA_F_SECONDARY != 0: // on IPv6 the same bit means temporary
			second = append(second, addr)
		default:
			first = append(first, addr)
		}
	}
	return append(first, second...), nil
}
