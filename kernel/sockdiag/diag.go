// Package sockdiag asks the kernel for sockets, by NETLINK_SOCK_DIAG: which there are in a network namespace, and whether one
// is connected still. It also ends them. A socket is named by its cookie too, so never another one is meant.
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel/privileges"
)

// The messages of NETLINK_SOCK_DIAG, as linux/inet_diag.h has them. Of the requests of vishvananda/netlink, SocketDestroy
// takes TCP over IPv4 alone and closes by addresses, not by the cookie; SocketDiagUDP and SocketDiagTCP list all sockets of
// all ports and states, with a copy of each message, where a node may have 60,000.
const (
	sizeofSockID  = 48                           // struct inet_diag_sockid
	sizeofRequest = unix.SizeofNlMsghdr + 8 + 48 // struct inet_diag_req_v2
	sizeofMessage = 4 + sizeofSockID + 5*4       // struct inet_diag_msg
	atInode       = 4 + sizeofSockID + 4*4       // idiag_inode
	listAnswer    = 32 << 10                     // what the kernel fills in a dump at most (netlink_dump)
	oneAnswer     = 4 << 10                      // for one socket
)

// State bits of a list. A connected UDP socket is in the state "established" too.
const (
	tcpEstablished   = 1 // TCP_ESTABLISHED of net/tcp_states.h
	stateEstablished = 1 << tcpEstablished
	stateSynSent     = 1 << 2
	stateFinWait1    = 1 << 4
	stateFinWait2    = 1 << 5
	stateCloseWait   = 1 << 8
)

// AllStates lists sockets whatever they do.
const AllStates = 1<<32 - 1

// Connected are the states of sockets that an application may still be using with its peer.
func Connected(p bpf.Proto) uint32 {
	if p == bpf.TCP {
		return stateEstablished | stateSynSent | stateFinWait1 | stateFinWait2 | stateCloseWait
	}
	return stateEstablished
}

// Socket is one as the kernel describes it.
type Socket struct {
	Family uint8
	Inode  uint32 // of its file; 0: it has none
	state  uint8
	id     [sizeofSockID]byte // struct inet_diag_sockid: what names it to the kernel
}

// Cookie is what programs know it by (bpf_get_socket_cookie).
func (s *Socket) Cookie() uint64 {
	return uint64(binary.NativeEndian.Uint32(s.id[40:])) | uint64(binary.NativeEndian.Uint32(s.id[44:]))<<32
}

// Established reports whether it is connected.
func (s *Socket) Established() bool { return s.state == tcpEstablished }

// Local is the address that the socket is bound to. A v4-mapped one comes as IPv4, here and in Remote.
func (s *Socket) Local() netip.AddrPort {
	return netip.AddrPortFrom(s.addr(4), binary.BigEndian.Uint16(s.id[0:]))
}

// Remote is the address that the socket is connected to.
func (s *Socket) Remote() netip.AddrPort {
	return netip.AddrPortFrom(s.addr(20), binary.BigEndian.Uint16(s.id[2:]))
}

func (s *Socket) addr(at int) netip.Addr {
	if s.Family == unix.AF_INET6 {
		return netip.AddrFrom16([16]byte(s.id[at : at+16])).Unmap()
	}
	return netip.AddrFrom4([4]byte(s.id[at : at+4]))
}

// To is the same socket, connected to another address of its family (IPv4 in its v4-mapped form for AF_INET6).
func (s Socket) To(remote netip.AddrPort) Socket {
	binary.BigEndian.PutUint16(s.id[2:], remote.Port())
	clear(s.id[20:36])
	if s.Family == unix.AF_INET6 {
		addr := remote.Addr().As16()
		copy(s.id[20:], addr[:])
	} else if remote.Addr().Is4() {
		addr := remote.Addr().As4()
		copy(s.id[20:], addr[:])
	}
	return s
}

// From is the same socket with another local address of its family.
func (s Socket) From(local netip.AddrPort) Socket { return s.swapped().To(local).swapped() }

// swapped has the two addresses and ports of the id exchanged.
func (s Socket) swapped() Socket {
	o := s
	copy(o.id[0:2], s.id[2:4])
	copy(o.id[2:4], s.id[0:2])
	copy(o.id[4:20], s.id[20:36])
	copy(o.id[20:36], s.id[4:20])
	return o
}

// Conn is a NETLINK_SOCK_DIAG socket of one network namespace, whichever thread uses it. It keeps the namespace alive. Not
// safe for concurrent use.
//
// Requests may wait for a socket's lock, which a hostile application can hold indefinitely, and before Linux 6.9 all
// requests of the machine wait for each other (sock_diag_mutex): use them where that is bearable.
type Conn struct {
	fd  int
	seq uint32
	buf []byte
}

// Open opens one in the calling thread's network namespace. Its error may match ErrNotSupported.
func Open() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("%w: open a diagnostics socket: %w", ErrNotSupported, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open a diagnostics socket: %w", err)
	}
	return &Conn{fd: fd}, nil
}

// Close closes it.
func (c *Conn) Close() { unix.Close(c.fd) }

// ask sends a struct inet_diag_req_v2, with attributes, and calls each for the sockets of the answer. Its errors are the
// kernel's.
func (c *Conn) ask(kind uint16, flags uint16, s *Socket, proto bpf.Proto, states uint32, attributes []byte, each func(*Socket)) error {
	c.seq++
	b := make([]byte, 0, sizeofRequest+len(attributes))
	b = binary.NativeEndian.AppendUint32(b, uint32(sizeofRequest+len(attributes)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, c.seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, s.Family, uint8(proto), 0, 0)
	b = binary.NativeEndian.AppendUint32(b, states)
	b = append(b, s.id[:]...)
	b = append(b, attributes...)
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	size := oneAnswer
	if flags&unix.NLM_F_DUMP != 0 {
		size = listAnswer
	}
	if len(c.buf) < size {
		c.buf = make([]byte, size)
	}
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		done, err := c.parse(c.buf[:n], flags, each)
		if done || err != nil {
			return err
		}
	}
}

var errMalformed = errors.New("malformed answer of the kernel")

// parse reads one message of an answer; done: it was the last.
func (c *Conn) parse(b []byte, flags uint16, each func(*Socket)) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		kind, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return true, errMalformed
		}
		body := b[unix.SizeofNlMsghdr:size]
		b = b[min(len(b), (size+3)&^3):]
		if seq != c.seq { // of a request that was given up
			continue
		}
		switch kind {
		case unix.NLMSG_DONE:
			if len(body) >= 4 {
				if code := int32(binary.NativeEndian.Uint32(body)); code < 0 {
					return true, unix.Errno(-code)
				}
			}
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return true, errMalformed
			}
			if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
				return true, unix.Errno(-code)
			}
			return true, nil
		default:
			if len(body) < sizeofMessage {
				return true, errMalformed
			}
			s := Socket{Family: body[0], Inode: binary.NativeEndian.Uint32(body[atInode:]), state: body[1], id: [sizeofSockID]byte(body[4:])}
			each(&s)
			if flags&unix.NLM_F_DUMP == 0 {
				return true, nil
			}
		}
	}
	return false, nil
}

// List calls each for the sockets of a protocol, in some states, that the calling thread's network namespace has; with a
// filter (ConnectedTo), for those that it leaves. A kernel without diagnostics for them gives an error that matches
// ErrNotSupported. Sockets that come, go or move in the kernel's table meanwhile may be missed.
func List(proto bpf.Proto, states uint32, filter []byte, each func(*Socket)) error {
	var families []uint8
	for six, family := range map[bool]uint8{false: unix.AF_INET, true: unix.AF_INET6} {
		if inUse(proto, six) {
			families = append(families, family)
		}
	}
	if len(families) == 0 {
		return nil
	}
	c, err := Open()
	if err != nil {
		return err
	}
	defer c.Close()
	for _, family := range families {
		if err := c.dump(family, proto, states, filter, each); err != nil {
			return err
		}
	}
	return nil
}

// dump lists the sockets of a family.
func (c *Conn) dump(family uint8, proto bpf.Proto, states uint32, filter []byte, each func(*Socket)) error {
	err := c.ask(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, &Socket{Family: family}, proto, states, filter, each)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: the kernel has no diagnostics of %v sockets (CONFIG_INET_%v_DIAG)", ErrNotSupported, proto, proto)
	}
	if err != nil {
		return fmt.Errorf("list %v sockets: %w", proto, err)
	}
	return nil
}

// Of linux/inet_diag.h: programs by which the kernel filters.
const (
	attrBytecode   = 1 // INET_DIAG_REQ_BYTECODE
	opJump         = 1 // INET_DIAG_BC_JMP
	opRemote       = 8 // INET_DIAG_BC_D_COND
	sizeofOp       = 4 // struct inet_diag_bc_op: code, where to go from here if it is true, and if not
	sizeofHostcond = 8 // struct inet_diag_hostcond: family, prefix length, port in host byte order; then the address
)

// ConnectedTo is a filter for sockets that are connected to one of some addresses, v4-mapped or not: the kernel passes over
// others at a small part of the price of listing them.
func ConnectedTo(list []netip.AddrPort) []byte {
	size := func(a netip.AddrPort) int { return sizeofOp + sizeofHostcond + a.Addr().BitLen()/8 }
	left := -sizeofOp // there is no jump after the last
	for _, a := range list {
		left += size(a) + sizeofOp
	}
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+left)) // struct nlattr
	b = binary.NativeEndian.AppendUint16(b, attrBytecode)
	for i, a := range list {
		n := size(a)
		family := uint8(unix.AF_INET6)
		if a.Addr().Is4() {
			family = unix.AF_INET
		}
		b = append(b, opRemote, uint8(n))                           // true: to the jump behind it, or the end, where a socket is taken
		b = binary.NativeEndian.AppendUint16(b, uint16(n+sizeofOp)) // else past that, to the next, or beyond the end
		b = append(b, family, uint8(a.Addr().BitLen()), 0, 0)
		b = binary.NativeEndian.AppendUint32(b, uint32(a.Port()))
		b = append(b, a.Addr().AsSlice()...)
		if left -= n; i < len(list)-1 {
			b = append(b, opJump, sizeofOp)
			b = binary.NativeEndian.AppendUint16(b, uint16(left)) // to the end
			left -= sizeofOp
		}
	}
	return b
}

// Has reports whether a UDP socket, by its cookie, is connected as s says. It is wrong for one that is hidden by another
// with the same addresses and ports. No lock is waited for but sock_diag_mutex.
func (c *Conn) Has(s *Socket) (bool, error) {
	found := false
	asked := s.swapped() // "src and dst are swapped for historical reasons" (net/ipv4/udp_diag.c, udp_dump_one)
	err := c.ask(unix.SOCK_DIAG_BY_FAMILY, 0, &asked, bpf.UDP, AllStates, nil, func(got *Socket) {
		found = got.Cookie() == s.Cookie() && got.Remote() == s.Remote()
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look a udp socket up: %w", err)
	}
	return found, nil
}

// Destroy makes a socket fail with ECONNABORTED. It must be the very one, by its cookie, and still connected as it was:
// else an error that matches ErrMoved. It waits for the socket's lock.
func (c *Conn) Destroy(s *Socket, proto bpf.Proto) error {
	return explain(c.ask(unix.SOCK_DESTROY, unix.NLM_F_ACK, s, proto, 0, nil, func(*Socket) {}), proto)
}

// explain says what an answer to a request to destroy means.
func explain(err error, proto bpf.Proto) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		return ErrMoved
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: destroy a %v socket: %w (CONFIG_INET_DIAG_DESTROY)", ErrNotSupported, proto, err)
	}
	return privileges.Refused("destroy", fmt.Sprintf("a %v socket", proto), err, unix.CAP_NET_ADMIN)
}

// ErrMoved says that a socket is closed by now, or connected elsewhere, or hidden by another one.
var ErrMoved = errors.New("the socket is no longer connected as it was")

// ErrNotSupported says that the kernel can't destroy sockets: built without CONFIG_INET_DIAG_DESTROY, or without
// diagnostics of the protocol.
var ErrNotSupported = errors.New("the kernel does not destroy sockets")
