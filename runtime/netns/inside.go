package netns

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Addrs are the addresses of the calling thread's network namespace by which
// others may know it, so without loopback and link-local ones, device by device;
// secondary and temporary ones come last.
func Addrs() ([]netip.Addr, error) {
	dump, err := syscall.NetlinkRIB(unix.RTM_GETADDR, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return parseAddrs(dump)
}

// parseAddrs reads a dump of addresses.
func parseAddrs(dump []byte) ([]netip.Addr, error) {
	msgs, err := syscall.ParseNetlinkMessage(dump)
	if err != nil {
		return nil, fmt.Errorf("parse addresses: %w", err)
	}
	var first, second []netip.Addr
	for i := range msgs {
		m := &msgs[i]
		if m.Header.Type == unix.NLMSG_DONE {
			break
		}
		if m.Header.Type != unix.RTM_NEWADDR || len(m.Data) < unix.SizeofIfAddrmsg {
			continue
		}
		addr := attrAddr(m.Data[unix.SizeofIfAddrmsg:])
		flags := m.Data[2] // those below 0x100 of ifa_flags, in struct ifaddrmsg
		switch {
		case !addr.IsGlobalUnicast() || flags&unix.IFA_F_DADFAILED != 0: // unspecified, multicast, loopback, link-local
		case flags&unix.IFA_F_SECONDARY != 0: // on IPv6 the same bit means temporary
			second = append(second, addr)
		default:
			first = append(first, addr)
		}
	}
	return append(first, second...), nil
}

// attrAddr is the device's own address among the attributes of a message. On
// point-to-point devices IFA_ADDRESS is the peer's, and IFA_LOCAL the own.
// (syscall.ParseNetlinkRouteAttr panics when the last attribute lacks its padding.)
func attrAddr(b []byte) netip.Addr {
	var addr netip.Addr
	for len(b) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			break
		}
		kind := binary.NativeEndian.Uint16(b[2:])
		if kind == unix.IFA_LOCAL || kind == unix.IFA_ADDRESS && !addr.IsValid() {
			addr, _ = netip.AddrFromSlice(b[unix.SizeofRtAttr:size])
		}
		b = b[min(len(b), (size+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return addr
}
