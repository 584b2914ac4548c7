package kubeproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"

	"golang.org/x/sys/unix"
)

// errInterrupted says that a dump changed while it was read: it may lack
// things that were there all the time.
var errInterrupted = errors.New("changed while being read")

// netlinkSocket is a connection to the kernel for questions only, one at a
// time. It stays in the network namespace of its birth. It reads into one
// buffer: a dump of many thousand rules leaves nothing for the collector.
type netlinkSocket struct {
	fd  int
	seq uint32
	buf []byte
}

func openNetlink(protocol int) (*netlinkSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	// The kernel answers within the send, and goes on within each receive: the
	// timeout is for the case that this is wrong.
	timeout := unix.Timeval{Sec: 2}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	// 32 KiB is what the kernel fills at most (af_netlink.c, netlink_dump).
	return &netlinkSocket{fd: fd, buf: make([]byte, 64<<10)}, nil
}

func (s *netlinkSocket) close() { unix.Close(s.fd) }

// dump asks for a list and hands each message, without its netlink header, to
// each; the slice is valid only during the call.
func (s *netlinkSocket) dump(msg uint16, body []byte, each func([]byte)) error {
	return s.ask(msg, unix.NLM_F_DUMP, body, each)
}

// get asks for one thing. An absent one is ENOENT, or ENODEV for devices.
func (s *netlinkSocket) get(msg uint16, body []byte, each func([]byte)) error {
	// With an acknowledgement every question ends with a message of its own.
	return s.ask(msg, unix.NLM_F_ACK, body, each)
}

func (s *netlinkSocket) ask(msg, flags uint16, body []byte, each func([]byte)) error {
	s.seq++
	request := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(request[0:], uint32(unix.SizeofNlMsghdr+len(body)))
	binary.NativeEndian.PutUint16(request[4:], msg)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(request[8:], s.seq)
	if err := unix.Sendto(s.fd, append(request, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	interrupted := false
	for {
		n, from, err := unix.Recvfrom(s.fd, s.buf, unix.MSG_TRUNC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		if n > len(s.buf) {
			return fmt.Errorf("read netlink: a message of %d bytes, more than expected", n)
		}
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue // not the kernel's
		}
		for m := range messages(s.buf[:n]) {
			if m.seq != s.seq {
				continue // the rest of a question that ended with an error
			}
			interrupted = interrupted || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.kind {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				return endOf(m.body, interrupted)
			case unix.NLMSG_NOOP:
			default:
				each(m.body)
			}
		}
	}
}

// endOf reads the errno with which an answer ends; 0 is success.
func endOf(body []byte, interrupted bool) error {
	if len(body) >= 4 {
		if errno := int32(binary.NativeEndian.Uint32(body)); errno < 0 {
			return unix.Errno(-errno)
		}
	}
	if interrupted {
		return errInterrupted
	}
	return nil
}

// retryInterrupted repeats a dump while it changes.
func retryInterrupted(dump func() error) (err error) {
	for range 5 {
		if err = dump(); !errors.Is(err, errInterrupted) {
			return err
		}
	}
	return err
}

// message is one of those in a datagram.
type message struct {
	kind, flags uint16
	seq         uint32
	body        []byte
}

// messages yields the messages of a datagram, up to the first that is cut off.
func messages(b []byte) iter.Seq[message] {
	return func(yield func(message) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return
			}
			m := message{
				kind:  binary.NativeEndian.Uint16(b[4:]),
				flags: binary.NativeEndian.Uint16(b[6:]),
				seq:   binary.NativeEndian.Uint32(b[8:]),
				body:  b[unix.SizeofNlMsghdr:size],
			}
			if !yield(m) {
				return
			}
			b = b[min(align4(size), len(b)):]
		}
	}
}

// attributes yields type and payload of each attribute, up to the first that
// is cut off. The flags for nesting and byte order are taken off the type.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofNlAttr || size > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, b[unix.SizeofNlAttr:size]) {
				return
			}
			b = b[min(align4(size), len(b)):]
		}
	}
}

// attribute finds the first of a type; nil when it isn't there.
func attribute(b []byte, kind uint16) []byte {
	for k, payload := range attributes(b) {
		if k == kind {
			return payload
		}
	}
	return nil
}

// nested finds an attribute inside of attributes.
func nested(b []byte, path ...uint16) []byte {
	for _, kind := range path {
		b = attribute(b, kind)
	}
	return b
}

// appendString adds a string attribute, with the zero at its end.
func appendString(b []byte, kind uint16, s string) []byte {
	size := unix.SizeofNlAttr + len(s) + 1
	b = binary.NativeEndian.AppendUint16(b, uint16(size))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, s...)
	return append(b, make([]byte, align4(size)-size+1)...)
}

func align4(n int) int { return (n + 3) &^ 3 }

// be32 reads the integers of nf_tables, which are in network byte order. ok is
// false for anything but four bytes.
func be32(b []byte) (v uint32, ok bool) {
	if len(b) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(b), true
}

// text is a string attribute's payload without the zero at its end.
func text(b []byte) string { return unix.ByteSliceToString(b) }
