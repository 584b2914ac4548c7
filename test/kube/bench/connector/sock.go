package main

import (
	"encoding/binary"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// endpoint is an IPv4 address and a port as the kernel takes them.
type endpoint unix.RawSockaddrInet4

func endpointOf(a netip.AddrPort) endpoint {
	e := endpoint{Family: unix.AF_INET, Addr: a.Addr().As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&e.Port))[:], a.Port())
	return e
}

// How long one connect may take before it counts as failed, by what is asked for: a packet that is dropped is sent
// again by the kernel only after a second.
const (
	patient   = 3 * time.Second
	impatient = 5 * time.Millisecond
)

// now is CLOCK_MONOTONIC, which all processes share.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // every kernel has it
	}
	return ts.Nano()
}

func raw(trap, a, b, c uintptr) (uintptr, unix.Errno) {
	r, _, errno := unix.RawSyscall(trap, a, b, c)
	return r, errno
}

func setsockopt(fd uintptr, level, name uintptr, value unsafe.Pointer, size uintptr) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, level, name, uintptr(value), size, 0)
	return errno
}

var (
	one     int32 = 1
	abort         = unix.Linger{Onoff: 1}
	longer        = unix.NsecToTimeval(int64(patient))
	shorter       = unix.NsecToTimeval(int64(impatient))
)

// open makes a socket with an address and no port yet, which resets its connection when it is closed: a connection
// that waits in TIME_WAIT would keep its port.
func open(source *endpoint, timeout *unix.Timeval) (uintptr, unix.Errno) {
	fd, errno := raw(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return 0, errno
	}
	for _, e := range [...]unix.Errno{
		setsockopt(fd, unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&abort), unsafe.Sizeof(abort)),
		setsockopt(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, unsafe.Pointer(timeout), unsafe.Sizeof(*timeout)),
		setsockopt(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, unsafe.Pointer(timeout), unsafe.Sizeof(*timeout)),
		setsockopt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, unsafe.Pointer(&one), unsafe.Sizeof(one)),
		bind(fd, source),
	} {
		if e != 0 {
			shut(fd)
			return 0, e
		}
	}
	return fd, 0
}

func bind(fd uintptr, source *endpoint) unix.Errno {
	_, errno := raw(unix.SYS_BIND, fd, uintptr(unsafe.Pointer(source)), unsafe.Sizeof(*source))
	return errno
}

func connect(fd uintptr, to *endpoint) unix.Errno {
	for {
		_, errno := raw(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(to)), unsafe.Sizeof(*to))
		switch errno {
		case unix.EINTR, unix.EALREADY: // it goes on by itself
		case unix.EISCONN:
			return 0
		default:
			return errno
		}
	}
}

// greeted reports whether the other end sends a byte before it closes.
func greeted(fd uintptr) bool {
	var b [1]byte
	n, errno := raw(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&b)), 1)
	return errno == 0 && n == 1
}

func shut(fd uintptr) { raw(unix.SYS_CLOSE, fd, 0, 0) }
