package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel/privileges"
)

// The messages of NETLINK_SOCK_DIAG, as linux/inet_diag.h has them, in the envelopes of vishvananda/netlink. Of its own
// requests, SocketDestroy takes TCP over IPv4 alone and closes by addresses, not by the cookie; SocketDiagUDP and
// SocketDiagTCP list all sockets of all ports and states.
const (
	sizeofSockID  = 48
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

// remote is the address that the socket is connected to. A v4-mapped one comes as IPv4.
func (s *socket) remote() netip.AddrPort {
	addr := netip.AddrFrom4([4]byte(s.id[20:24]))
	if s.family == unix.AF_INET6 {
		addr = netip.AddrFrom16([16]byte(s.id[20:36])).Unmap()
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(s.id[2:]))
}

// request sends a struct inet_diag_req_v2 in the calling thread's network namespace and returns the answers.
func request(kind, flags int, s socket, proto bpf.Proto, states uint32) ([][]byte, error) {
	req := nl.NewNetlinkRequest(kind, flags)
	b := binary.NativeEndian.AppendUint32([]byte{s.family, uint8(proto), 0, 0}, states)
	req.AddRawData(append(b, s.id[:]...))
	answers, err := req.Execute(unix.NETLINK_SOCK_DIAG, unix.SOCK_DIAG_BY_FAMILY)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("%w: open a diagnostics socket: %w", ErrNotSupported, err)
	}
	return answers, err
}

// dump lists the sockets of a family and protocol that are connected to a port; 0: to any. A kernel without diagnostics
// for them gives an error that matches ErrNotSupported.
func dump(family uint8, proto bpf.Proto, port uint16, each func(socket)) error {
	filter := socket{family: family}
	binary.BigEndian.PutUint16(filter.id[2:], port)
	answers, err := request(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, filter, proto, states(proto))
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: the kernel has no diagnostics of %v sockets (CONFIG_INET_%v_DIAG)", ErrNotSupported, proto, proto)
	}
	if err != nil {
		return fmt.Errorf("list %v sockets: %w", proto, err)
	}
	for _, b := range answers {
		if len(b) < sizeofMessage {
			return fmt.Errorf("parse sockets: one of %d bytes", len(b))
		}
		each(socket{family: b[0], id: [sizeofSockID]byte(b[4:])})
	}
	return nil
}

// destroy makes a socket fail with ECONNABORTED. It must be the very one, by its cookie, and still connected as it was:
// else an error that matches errMoved.
func destroy(s socket, proto bpf.Proto) error {
	_, err := request(unix.SOCK_DESTROY, unix.NLM_F_ACK, s, proto, 0)
	return explain(err, proto)
}

// explain says what an answer to a request to destroy means.
func explain(err error, proto bpf.Proto) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		return errMoved
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: destroy a %v socket: %w (CONFIG_INET_DIAG_DESTROY)", ErrNotSupported, proto, err)
	}
	return privileges.Refused("destroy", fmt.Sprintf("a %v socket", proto), err, unix.CAP_NET_ADMIN)
}

// errMoved says that a socket is closed by now, or connected elsewhere, or hidden by another one.
var errMoved = errors.New("the socket is no longer connected as it was")
