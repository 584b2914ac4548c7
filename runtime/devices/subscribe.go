package devices

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Multicast groups of rtnetlink (RTNLGRP_*) that package unix has no name for below.
const groupNexthop = 32 // RTNLGRP_NEXTHOP, Linux 5.3; older kernels pass it over

// maxDrained bounds how many events are thrown away at once: a socket has room for fewer.
const maxDrained = 10_000

// subscription tells that something has changed, not what: all is read again. While nobody listens, the kernel keeps some
// hundred events and counts the others as one, so a hundred thousand changes of routes cost next to nothing.
type subscription struct {
	file   *os.File
	conn   syscall.RawConn
	events chan struct{} // something has changed; then the socket is not read until resume
	resume chan struct{}
	buffer [64]byte // an event's header; the rest is cut off
}

// subscribe listens in the calling thread's network namespace, to groups of numbers up to 32.
func subscribe(groups ...uint) (*subscription, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	var mask uint32
	for _, g := range groups {
		mask |= 1 << (g - 1)
	}
	file := os.NewFile(uintptr(fd), "netlink")
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: mask}); err != nil {
		file.Close()
		return nil, fmt.Errorf("subscribe to changes of devices and routes: %w", err)
	}
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &subscription{file: file, conn: conn, events: make(chan struct{}), resume: make(chan struct{}, 1)}, nil
}

// close ends watch.
func (s *subscription) close() { s.file.Close() }

// watch tells of changes until the subscription is closed or ctx ends.
func (s *subscription) watch(ctx context.Context) {
	for s.receive(true) {
		select {
		case s.events <- struct{}{}:
		case <-ctx.Done():
			return
		}
		select {
		case <-s.resume:
		case <-ctx.Done():
			return
		}
	}
}

// drain throws away what is there, after an event and before all is read again, and has watch continue.
func (s *subscription) drain() {
	for range maxDrained {
		if !s.receive(false) {
			break
		}
	}
	s.resume <- struct{}{}
}

// receive takes one event, which may be that others were lost (ENOBUFS). It returns false where there is none, or where
// it waits and the subscription is closed.
func (s *subscription) receive(wait bool) (event bool) {
	err := s.conn.Read(func(fd uintptr) (done bool) {
		for {
			_, _, err := unix.Recvfrom(int(fd), s.buffer[:], unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.EAGAIN):
				return !wait
			}
			event = true
			return true
		}
	})
	return event && err == nil
}
