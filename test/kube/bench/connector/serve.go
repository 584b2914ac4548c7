package main

import (
	"fmt"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"
)

// backlog is how many connections may wait; the kernel allows as many as net.core.somaxconn.
const backlog = 1 << 16

// serve accepts on each address with a thread of its own.
func serve(port uint16, old, fresh []string) error {
	errs := make(chan error)
	start := func(addrs []string, greet bool) error {
		for _, a := range addrs {
			addr, err := netip.ParseAddr(a)
			if err != nil {
				return err
			}
			fd, err := listen(netip.AddrPortFrom(addr, port))
			if err != nil {
				return fmt.Errorf("listen on %s: %w", a, err)
			}
			go func() { errs <- accept(fd, greet) }()
		}
		return nil
	}
	if err := start(old, false); err != nil {
		return err
	}
	if err := start(fresh, true); err != nil {
		return err
	}
	return <-errs
}

func listen(addr netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}); err != nil {
		return 0, err
	}
	return fd, unix.Listen(fd, backlog)
}

// accept takes connections and closes them.
func accept(fd int, greet bool) error {
	runtime.LockOSThread()
	for {
		conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		switch err {
		case nil:
		case unix.EINTR, unix.ECONNABORTED:
			continue
		default:
			return err
		}
		if greet {
			_ = unix.Sendto(conn, []byte{1}, unix.MSG_NOSIGNAL, nil)
		}
		shut(uintptr(conn))
	}
}
