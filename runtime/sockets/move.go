package sockets

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/sockdiag"
)

var (
	// errNotThere says that a socket is not connected to the backend that it was asked about.
	errNotThere = errors.New("the socket is not connected there")
	// errBound says that a socket which waits can't reach the Service from where it is bound: it waits on, and its way
	// back is gone.
	errBound = errors.New("the socket can't reach a backend from its own address")
	// errStays says that a socket was connected to its Service again, and still waits: its client is not allowed.
	errStays = errors.New("the Service leads the socket where it was")
)

// move connects a UDP socket to its Service again, through the programs, by a copy of it. s is the socket as it was found;
// the application's descriptors of it, its options and, unless it waited nowhere, its port stay as they are.
//
// The kernel is asked, right before, whether the socket is connected to the backend still: an application that connects it
// elsewhere within the same microseconds loses that connection to its Service. Calls on the copy wait for the socket's
// lock, which an application can hold indefinitely (a corked send of a page that is never delivered).
//
// With sure the kernel has listed the socket so just now: it can't be asked for one that another hides, which has the same
// addresses and ports.
//
// It returns the socket with its local address of now.
func move(d *sockdiag.Conn, c *copier, s sockdiag.Socket, h holder, sure bool, backend, frontend netip.AddrPort) (sockdiag.Socket, error) {
	from := s.To(backend)
	if !sure {
		switch there, err := d.Has(&from); {
		case err != nil:
			return s, err
		case !there:
			return s, errNotThere
		}
	}
	fd, err := c.copy(h, s.Cookie())
	if err != nil {
		return s, err
	}
	defer unix.Close(fd)
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || family != int(s.Family) { // IPV6_ADDRFORM made another of it
		return s, errNotThere
	}
	dissolved := isNowhere(backend) && s.Local().Addr().IsLoopback()
	if dissolved { // no packet leaves from a loopback address
		if err := disconnect(fd); err != nil {
			return s, fmt.Errorf("dissolve the connection of a udp socket: %w", err)
		}
	}
	err = unix.Connect(fd, sockaddr(family, frontend))
	if err != nil && dissolved {
		// An application's send must not fail for want of a peer. The programs take that for a connect to nowhere
		// itself, and forget the way back.
		return s, errors.Join(errBound, unix.Connect(fd, sockaddr(family, backend)))
	}
	if err != nil {
		return s, fmt.Errorf("connect a udp socket to %v: %w", frontend, err)
	}
	if !isNowhere(backend) { // the table does not lead there
		return s, nil
	}
	if dissolved {
		if from, err = bound(from, fd); err != nil {
			return s, err
		}
	}
	if there, err := d.Has(&from); err != nil || there {
		return from, errors.Join(err, errStays)
	}
	return from, nil
}

// sockaddr is an address for a socket of a family: IPv4 is v4-mapped for AF_INET6.
func sockaddr(family int, at netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
}

// disconnect makes a UDP socket connected to nobody.
func disconnect(fd int) error {
	unspecified := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspecified)), unsafe.Sizeof(unspecified))
	if errno != 0 {
		return errno
	}
	return nil
}

// bound is a socket with the local address that it has now.
func bound(s sockdiag.Socket, fd int) (sockdiag.Socket, error) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return s, fmt.Errorf("read the address of a udp socket: %w", err)
	}
	var at netip.AddrPort
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		at = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		at = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return s.From(at), nil
}
