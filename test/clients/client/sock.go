package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/firsthop/firsthop/test/clients"
	"golang.org/x/sys/unix"
)

// sock is a blocking socket without any of package net's own ideas: one call here is one system call.
type sock struct{ fd int }

func newSock(mode clients.Mode, target netip.AddrPort, timeout time.Duration) (*sock, error) {
	kind := unix.SOCK_DGRAM
	if mode == clients.TCP {
		kind = unix.SOCK_STREAM
	}
	return newSockOf(kind, 0, target, timeout)
}

func newSockOf(kind, proto int, target netip.AddrPort, timeout time.Duration) (*sock, error) {
	family := unix.AF_INET
	if target.Addr().Is6() { // v4-mapped ones too
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, callError("socket", err)
	}
	s := &sock{fd}
	tv := unix.NsecToTimeval(timeout.Nanoseconds())
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} { // the latter bounds connect too: see socket(7)
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &tv); err != nil {
			s.close()
			return nil, callError("setsockopt", err)
		}
	}
	return s, nil
}

func (s *sock) close() {
	if s != nil {
		_ = unix.Close(s.fd)
	}
}

// reset closes with a RST, so that no TIME_WAIT uses up the ports of a client that connects in a loop.
func (s *sock) reset() {
	_ = unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	s.close()
}

// awaitClose ends the sending side and reads until the server has ended its own, with or without an error.
func (s *sock) awaitClose() {
	_ = unix.Shutdown(s.fd, unix.SHUT_WR)
	buf := make([]byte, 4096)
	for {
		n := 0
		err := again("recv", func() (err error) { n, err = unix.Read(s.fd, buf); return err })
		if err != nil || n == 0 {
			return
		}
	}
}

func (s *sock) connect(target netip.AddrPort) error {
	return again("connect", func() error { return unix.Connect(s.fd, sockaddr(target)) })
}

// exchange sends a line and waits for the answer. It fills in what it learns before an error too.
func (s *sock) exchange(mode clients.Mode, target netip.AddrPort, line string, e *clients.Exchange) error {
	if mode == clients.UDPUnconnected {
		err := again("sendto", func() error { return unix.Sendto(s.fd, []byte(line), 0, sockaddr(target)) })
		if err != nil {
			return err
		}
		return s.receive(e)
	}
	if err := s.connect(target); err != nil {
		return err
	}
	peer, err := unix.Getpeername(s.fd)
	if err != nil {
		return callError("getpeername", err)
	}
	e.Peer = addrPort(peer).String()
	if err := again("send", func() error { _, err := unix.Write(s.fd, []byte(line)); return err }); err != nil {
		return err
	}
	if mode == clients.UDPConnected {
		return s.receive(e)
	}
	return s.readLine(e)
}

// receive reads one datagram.
func (s *sock) receive(e *clients.Exchange) error {
	buf := make([]byte, 1<<16)
	return again("recvfrom", func() error {
		n, from, err := unix.Recvfrom(s.fd, buf, 0)
		if err != nil {
			return err
		}
		e.From, e.Reply = addrPort(from).String(), string(buf[:n])
		return nil
	})
}

// readLine reads from a stream until a line's end.
func (s *sock) readLine(e *clients.Exchange) error {
	var got []byte
	buf := make([]byte, 4096)
	for !bytes.HasSuffix(got, []byte("\n")) {
		n := 0
		err := again("recv", func() (err error) { n, err = unix.Read(s.fd, buf); return err })
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("recv EOF")
		}
		got = append(got, buf[:n]...)
	}
	e.Reply = string(got)
	return nil
}

// again repeats a call that a signal interrupts: the Go runtime sends itself some.
func again(name string, fn func() error) error {
	for {
		err := fn()
		switch {
		case err == nil || name == "connect" && errors.Is(err, unix.EISCONN):
			return nil // an interrupted connect goes on by itself
		case !errors.Is(err, unix.EINTR):
			return callError(name, err)
		}
	}
}

func callError(name string, err error) error {
	errno, ok := errors.AsType[unix.Errno](err)
	if !ok {
		return fmt.Errorf("%s %w", name, err)
	}
	if errno == unix.EAGAIN || errno == unix.EINPROGRESS || errno == unix.EALREADY { // what the socket's own timeouts give; the last after an interrupted connect
		return errors.New(name + " timeout")
	}
	return errors.New(name + " " + unix.ErrnoName(errno))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// addrPort keeps the v4-mapped form: it is what the application sees.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
