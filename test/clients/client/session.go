package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/clients"
)

// A session asks one line after the other until the standard input ends, and prints a report of each. How long an
// answer may take, that of a connection and that of a datagram, which may be lost; and what lies between two questions.
const (
	answerTime   = 10 * time.Second
	datagramTime = time.Second
	betweenAsk   = 20 * time.Millisecond
)

func answerTimeOf(mode clients.Mode) time.Duration {
	if mode == clients.TCP {
		return answerTime
	}
	return datagramTime
}

// session asks in the way of a kind. What a socket keeps between two questions is the point of each.
func session(kind clients.SessionKind, target netip.AddrPort) error {
	ask, err := asker(kind, target)
	if err != nil {
		return err
	}
	var ended atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		ended.Store(true)
	}()
	out := json.NewEncoder(os.Stdout)
	for n := 0; !ended.Load(); n++ {
		var e clients.Exchange
		if err := ask(fmt.Sprintf("%s-%d\n", kind, n), &e); err != nil {
			e.Error = err.Error()
		}
		if err := out.Encode(e); err != nil {
			return err
		}
		time.Sleep(betweenAsk)
	}
	return nil
}

type ask = func(line string, e *clients.Exchange) error

func asker(kind clients.SessionKind, target netip.AddrPort) (ask, error) {
	fresh := func(mode clients.Mode, do func(*sock, string, *clients.Exchange) error) ask {
		return func(line string, e *clients.Exchange) error {
			s, err := newSock(mode, target, answerTimeOf(mode))
			if err != nil {
				return err
			}
			defer s.close()
			return do(s, line, e)
		}
	}
	kept := func(mode clients.Mode, first func(*sock) error, do func(*sock, string, *clients.Exchange) error) (ask, error) {
		s, err := newSock(mode, target, answerTimeOf(mode))
		if err == nil && first != nil {
			err = first(s)
		}
		return func(line string, e *clients.Exchange) error { return do(s, line, e) }, err
	}
	connect := func(s *sock) error { return s.connect(target) }
	switch kind {
	case clients.TCPEach:
		return fresh(clients.TCP, func(s *sock, line string, e *clients.Exchange) error {
			return s.exchange(clients.TCP, target, line, e)
		}), nil
	case clients.TCPDissolved:
		return kept(clients.TCP, nil, func(s *sock, line string, e *clients.Exchange) error {
			err := s.exchange(clients.TCP, target, line, e)
			return or(err, s.dissolve())
		})
	case clients.MPTCP:
		return func(line string, e *clients.Exchange) error {
			s, err := newSockOf(unix.SOCK_STREAM, unix.IPPROTO_MPTCP, target, answerTime)
			if err != nil {
				return err
			}
			defer s.close()
			return s.exchange(clients.TCP, target, line, e)
		}, nil
	case clients.FastOpenMessage:
		return fresh(clients.TCP, func(s *sock, line string, e *clients.Exchange) error {
			err := again("sendto", func() error { return unix.Sendto(s.fd, []byte(line), unix.MSG_FASTOPEN, sockaddr(target)) })
			return or(err, s.peer(e), s.readLine(e))
		}), nil
	case clients.FastOpenConnect:
		return fresh(clients.TCP, func(s *sock, line string, e *clients.Exchange) error {
			if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1); err != nil {
				return callError("setsockopt", err)
			}
			return s.exchange(clients.TCP, target, line, e)
		}), nil
	case clients.UDPOnce:
		return kept(clients.UDPConnected, connect, func(s *sock, line string, e *clients.Exchange) error { return s.talk(line, e) })
	case clients.UDPDissolved:
		return kept(clients.UDPConnected, connect, func(s *sock, line string, e *clients.Exchange) error {
			if err := or(s.dissolve(), s.connect(target)); err != nil {
				return err
			}
			return s.talk(line, e)
		})
	case clients.UDPLoose:
		return kept(clients.UDPUnconnected, nil, func(s *sock, line string, e *clients.Exchange) error {
			s.drain()
			return s.exchange(clients.UDPUnconnected, target, line, e)
		})
	case clients.UDPReusePort:
		return reusePort(target)
	case clients.UDPSilent:
		return kept(clients.UDPConnected, connect, func(s *sock, line string, e *clients.Exchange) error {
			return again("send", func() error { _, err := unix.Write(s.fd, []byte(line)); return err })
		})
	case clients.RingTCP, clients.RingUDP:
		return ringAsker(kind, target)
	case clients.GoUDP:
		return goUDP(target)
	}
	return nil, fmt.Errorf("unknown kind of session %q", kind)
}

// or is the first error that came; the later calls are made where they are arguments, so each is harmless after one.
func or(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// peer notes who the socket says it is connected to.
func (s *sock) peer(e *clients.Exchange) error {
	sa, err := unix.Getpeername(s.fd)
	if err != nil {
		return callError("getpeername", err)
	}
	e.Peer = addrPort(sa).String()
	return nil
}

// talk sends on a connected datagram socket and waits for the answer to this line.
func (s *sock) talk(line string, e *clients.Exchange) error {
	s.drain()
	if err := s.peer(e); err != nil {
		return err
	}
	if err := again("send", func() error { _, err := unix.Write(s.fd, []byte(line)); return err }); err != nil {
		return err
	}
	return s.receive(e)
}

// drain takes late answers to former questions off a socket. An error that waits there is for the next call to hear.
func (s *sock) drain() {
	buf := make([]byte, 1<<16)
	for {
		if n, _, err := unix.Recvfrom(s.fd, buf, unix.MSG_DONTWAIT); err != nil || n == 0 {
			return
		}
	}
}

// dissolve takes a socket's connection away, as connect(2) to AF_UNSPEC does.
func (s *sock) dissolve() error {
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(s.fd), uintptr(unsafe.Pointer(&unspec)), unix.SizeofSockaddrInet4)
	if errno != 0 {
		return callError("connect AF_UNSPEC", errno)
	}
	return nil
}

// reusePort has a connected socket beside another one with its port, as a server has that also asks. What is for the
// former is not heard by the latter.
func reusePort(target netip.AddrPort) (ask, error) {
	var socks [2]*sock
	local := &unix.SockaddrInet4{}
	for i := range socks {
		s, err := newSock(clients.UDPConnected, target, datagramTime)
		if err != nil {
			return nil, err
		}
		err = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		if err = or(err, unix.Bind(s.fd, local)); err != nil {
			return nil, callError("bind", err)
		}
		sa, err := unix.Getsockname(s.fd)
		if err != nil {
			return nil, callError("getsockname", err)
		}
		local.Port, socks[i] = sa.(*unix.SockaddrInet4).Port, s
	}
	asks, listens := socks[0], socks[1]
	buf := make([]byte, 1<<16)
	return func(line string, e *clients.Exchange) error {
		if n, from, err := unix.Recvfrom(listens.fd, buf, unix.MSG_DONTWAIT); err == nil {
			return fmt.Errorf("the other socket heard %q of %v", buf[:n], from)
		}
		return asks.talk(line, e)
	}, asks.connect(target)
}

// goUDP is package net's own idea of a connected socket, as agents written in Go have it.
func goUDP(target netip.AddrPort) (ask, error) {
	conn, err := net.Dial("udp", target.String())
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 1<<16)
	return func(line string, e *clients.Exchange) error {
		e.Peer = conn.RemoteAddr().String()
		if _, err := conn.Write([]byte(line)); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(datagramTime)); err != nil {
			return err
		}
		n, err := conn.Read(buf)
		if err, late := err.(net.Error); late && err.Timeout() {
			return fmt.Errorf("recv timeout")
		}
		e.Reply = string(buf[:n])
		return err
	}, nil
}

// unspec is a sockaddr of family AF_UNSPEC.
var unspec = unix.RawSockaddrInet4{Family: unix.AF_UNSPEC}
