package main

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/clients"
)

// ring is as much of io_uring(7) as it takes to connect, send and receive, one after the other.
type ring struct {
	fd             int
	sqHead, sqTail *uint32
	sqMask         uint32
	sqArray        []uint32
	sqes           []sqe
	cqHead, cqTail *uint32
	cqMask         uint32
	cqes           []cqe

	// What the kernel reads and writes by address is here: on the heap, where nothing moves.
	limit unix.Timespec
	time  time.Duration // that an operation may take
	to    unix.RawSockaddrInet4
	out   []byte
	in    [1 << 16]byte
}

// sqe is struct io_uring_sqe.
type sqe struct {
	opcode, flags uint8
	ioprio        uint16
	fd            int32
	off           uint64 // of connect: the address's length
	addr          uint64
	len           uint32
	opFlags       uint32
	userData      uint64
	_             [3]uint64
}

// cqe is struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wqFd uint32
	_                                                      [3]uint32
	sq                                                     [10]uint32 // head tail mask entries flags dropped array _ _ _
	cq                                                     [10]uint32 // head tail mask entries overflow cqes flags _ _ _
}

// Operations and offsets of linux/io_uring.h. A linked timeout bounds the one before it.
const (
	opConnect, opSend, opRecv, opLinkTimeout = 16, 26, 27, 15

	linkNext                         = 1 << 2 // IOSQE_IO_LINK
	enterGetEvents                   = 1
	offSQRing, offCQRing, offEntries = 0, 0x8000000, 0x10000000
)

func newRing() (*ring, error) {
	var p ringParams
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 8, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, callError("io_uring_setup", errno)
	}
	r := &ring{fd: int(fd)}
	mapped := func(offset int64, size uint32) []byte {
		m, err := unix.Mmap(r.fd, offset, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			panic(err) // no memory
		}
		return m
	}
	at := func(m []byte, offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&m[offset])) }
	sq := mapped(offSQRing, p.sq[6]+p.sqEntries*4)
	r.sqHead, r.sqTail, r.sqMask = at(sq, p.sq[0]), at(sq, p.sq[1]), *at(sq, p.sq[2])
	r.sqArray = unsafe.Slice(at(sq, p.sq[6]), p.sqEntries)
	entries := mapped(offEntries, p.sqEntries*uint32(unsafe.Sizeof(sqe{})))
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&entries[0])), p.sqEntries)
	cq := mapped(offCQRing, p.cq[5]+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	r.cqHead, r.cqTail, r.cqMask = at(cq, p.cq[0]), at(cq, p.cq[1]), *at(cq, p.cq[2])
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&cq[p.cq[5]])), p.cqEntries)
	return r, nil
}

// do makes one operation on a socket, within the time that an answer may take, and returns what it returns.
func (r *ring) do(name string, op sqe) (int, error) {
	r.limit = unix.NsecToTimespec(r.time.Nanoseconds())
	op.flags, op.userData = linkNext, 1
	for _, e := range []sqe{op, {opcode: opLinkTimeout, fd: -1, addr: uint64(uintptr(unsafe.Pointer(&r.limit))), len: 1, userData: 2}} {
		tail := *r.sqTail
		r.sqes[tail&r.sqMask] = e
		r.sqArray[tail&r.sqMask] = tail & r.sqMask
		atomic.StoreUint32(r.sqTail, tail+1)
	}
	submit, result, got := uintptr(2), int32(0), 0
	for got < 2 { // that of the operation, and that of its limit
		if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), submit, 1, enterGetEvents, 0, 0); errno != 0 && errno != unix.EINTR {
			return 0, callError("io_uring_enter", errno)
		}
		submit = 0
		for head := *r.cqHead; head != atomic.LoadUint32(r.cqTail); head++ {
			if c := r.cqes[head&r.cqMask]; c.userData == 1 {
				result = c.res
			}
			got++
			atomic.StoreUint32(r.cqHead, head+1)
		}
	}
	switch errno := unix.Errno(-result); {
	case result >= 0:
		return int(result), nil
	case errno == unix.ECANCELED:
		return 0, fmt.Errorf("%s timeout", name)
	default:
		return 0, callError(name, errno)
	}
}

// ringAsker is a client whose every call on its socket goes through io_uring.
func ringAsker(kind clients.SessionKind, target netip.AddrPort) (ask, error) {
	r, err := newRing()
	if err != nil {
		return nil, err
	}
	mode := clients.UDPConnected
	if kind == clients.RingTCP {
		mode = clients.TCP
	}
	r.time = answerTimeOf(mode)
	open := func() (*sock, error) {
		s, err := newSock(mode, target, r.time)
		if err != nil {
			return nil, err
		}
		r.to = rawSockaddr(target)
		_, err = r.do("connect", sqe{opcode: opConnect, fd: int32(s.fd), off: unix.SizeofSockaddrInet4, addr: uint64(uintptr(unsafe.Pointer(&r.to)))})
		return s, err
	}
	talk := func(s *sock, line string, e *clients.Exchange) error {
		if err := s.peer(e); err != nil {
			return err
		}
		r.out = append(r.out[:0], line...)
		if _, err := r.do("send", sqe{opcode: opSend, fd: int32(s.fd), addr: uint64(uintptr(unsafe.Pointer(&r.out[0]))), len: uint32(len(r.out))}); err != nil {
			return err
		}
		n, err := r.do("recv", sqe{opcode: opRecv, fd: int32(s.fd), addr: uint64(uintptr(unsafe.Pointer(&r.in[0]))), len: uint32(len(r.in))})
		e.Reply = string(r.in[:n])
		if err == nil && !strings.HasSuffix(e.Reply, "\n") {
			err = fmt.Errorf("recv a part")
		}
		return err
	}
	if kind == clients.RingTCP {
		return func(line string, e *clients.Exchange) error {
			s, err := open()
			if err != nil {
				s.close()
				return err
			}
			defer s.close()
			return talk(s, line, e)
		}, nil
	}
	s, err := open()
	return func(line string, e *clients.Exchange) error {
		s.drain()
		return talk(s, line, e)
	}, err
}

func rawSockaddr(a netip.AddrPort) unix.RawSockaddrInet4 {
	sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().As4()}
	port := (*[2]byte)(unsafe.Pointer(&sa.Port))
	port[0], port[1] = byte(a.Port()>>8), byte(a.Port())
	return sa
}
