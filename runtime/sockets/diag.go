package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// The messages of NETLINK_SOCK_DIAG, as linux/inet_diag.h has them. What
// vishvananda/netlink offers destroys but TCP over IPv4, and by addresses alone.
const (
	sizeofSockID  = 48
	sizeofRequest = 8 + sizeofSockID
	sizeofMessage = 4 + sizeofSockID // the part of struct inet_diag_msg that is read
)

// State bits of a dump. A connected UDP socket is in the state "established" too.
const (
	stateEstablished = 1 << 1
	stateSynSent     = 1 << 2
	stateFinWait1    = 1 << 4
	stateFinWait2    = 1 << 5
	stateCloseWait   = 1 << 8
)

// states are those of sockets that an application may still be using.
func states(p bpf.Proto) uint32 {
	if p == bpf.TCP {
		return stateEstablished | stateSynSent | stateFinWait1 | stateFinWait2 | stateCloseWait
	}
	return stateEstablished
}

// socket is one of a dump.
type socket struct {
	family uint8
	id     [sizeofSockID]byte // struct inet_diag_sockid: what names it to the kernel
}

func (s *socket) cookie() uint64 {
	return uint64(binary.NativeEndian.Uint32(s.id[40:])) | uint64(binary.NativeEndian.Uint32(s.id[44:]))<<32
}

// to is whom the socket is connected with. A v4-mapped address comes as IPv4.
func (s *socket) to() netip.AddrPort {
	addr := netip.AddrFrom4([4]byte(s.id[20:24]))
	if s.family == unix.AF_INET6 {
		addr = netip.AddrFrom16([16]byte(s.id[20:36])).Unmap()
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(s.id[2:]))
}

// dumpRequest asks for the sockets of a family, protocol and states that are
// connected to a port; 0: to any.
func dumpRequest(family uint8, proto bpf.Proto, port uint16) []byte {
	var id [sizeofSockID]byte
	binary.BigEndian.PutUint16(id[2:], port)
	return request(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, family, proto, states(proto), id)
}

func destroyRequest(s *socket, proto bpf.Proto) []byte {
	return request(unix.SOCK_DESTROY, unix.NLM_F_ACK, s.family, proto, 0, s.id)
}

// request makes a struct inet_diag_req_v2 in its envelope.
func request(kind, flags uint16, family uint8, proto bpf.Proto, states uint32, id [sizeofSockID]byte) []byte {
	b := make([]byte, 0, unix.NLMSG_HDRLEN+sizeofRequest)
	b = binary.NativeEndian.AppendUint32(b, unix.NLMSG_HDRLEN+sizeofRequest)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // sequence number, port: one request at a time
	b = append(b, family, uint8(proto), 0, 0)
	b = binary.NativeEndian.AppendUint32(b, states)
	return append(b, id[:]...)
}

// parse reads the messages of one answer. done: it was the last.
func parse(b []byte, each func(socket)) (done bool, err error) {
	for len(b) > 0 {
		if len(b) < unix.NLMSG_HDRLEN {
			return false, fmt.Errorf("parse sockets: %d bytes are no message", len(b))
		}
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return false, fmt.Errorf("parse sockets: a message of %d bytes in %d", size, len(b))
		}
		data := b[unix.NLMSG_HDRLEN:size]
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			return true, status(data)
		case unix.SOCK_DIAG_BY_FAMILY:
			if len(data) < sizeofMessage {
				return false, fmt.Errorf("parse sockets: one of %d bytes", len(data))
			}
			each(socket{family: data[0], id: [sizeofSockID]byte(data[4:])})
		}
		b = b[min(len(b), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return false, nil
}

// status is the error number with which an answer ends. A dump's end had none
// on old kernels.
func status(data []byte) error {
	if len(data) < 4 {
		return nil
	}
	if n := int32(binary.NativeEndian.Uint32(data)); n < 0 {
		return unix.Errno(-n)
	}
	return nil
}

// diag is an open NETLINK_SOCK_DIAG socket. It speaks of the network namespace
// in which it was opened, wherever it is used.
type diag struct {
	fd  int
	buf []byte
}

// answerTime bounds the wait for the kernel, which answers at once or never.
const answerTime = 5 // seconds

func openDiag() (*diag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("%w: open a diagnostics socket: %w", ErrNotSupported, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open a diagnostics socket: %w", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: answerTime}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open a diagnostics socket: %w", err)
	}
	return &diag{fd: fd, buf: make([]byte, 32<<10)}, nil // what the kernel puts into one message of a dump
}

func (d *diag) Close() error { return unix.Close(d.fd) }

// ask sends a request and reads its answer to the end.
func (d *diag) ask(request []byte, each func(socket)) error {
	if err := unix.Sendto(d.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		n, _, err := unix.Recvfrom(d.fd, d.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if done, err := parse(d.buf[:n], each); done || err != nil {
			return err
		}
	}
}

// dump lists connected sockets. A kernel without diagnostics for the family and
// protocol gives an error that matches ErrNotSupported.
func (d *diag) dump(family uint8, proto bpf.Proto, port uint16, each func(socket)) error {
	err := d.ask(dumpRequest(family, proto, port), each)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: the kernel has no diagnostics of %v sockets (CONFIG_INET_%v_DIAG)", ErrNotSupported, proto, proto)
	}
	if err != nil {
		return fmt.Errorf("list %v sockets: %w", proto, err)
	}
	return nil
}

// destroy makes a socket fail with ECONNABORTED. It must be the very one, by
// its cookie, and still connected as it was: else an error that matches errMoved.
func (d *diag) destroy(s *socket, proto bpf.Proto) error {
	return explain(d.ask(destroyRequest(s, proto), func(socket) {}), proto)
}

// explain says what an answer to a destroyRequest means.
func explain(err error, proto bpf.Proto) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		return errMoved
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: destroy a %v socket: %w (CONFIG_INET_DIAG_DESTROY)", ErrNotSupported, proto, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("destroy a %v socket: %w: this process needs CAP_NET_ADMIN", proto, err)
	}
	return fmt.Errorf("destroy a %v socket: %w", proto, err)
}

// errMoved says that a socket is closed by now, or connected elsewhere, or hidden by another one.
var errMoved = errors.New("the socket is no longer connected as it was")
