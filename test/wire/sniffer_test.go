package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// frame is a packet as it was captured, from its network header on.
type frame struct {
	src, dst netip.AddrPort // ports are zero in later fragments, and in ICMP
	proto    bpf.Proto
	out      bool   // this machine sent it
	partial  bool   // the device was to complete the checksum
	icmp     int    // type, or -1
	later    bool   // a fragment without ports
	data     []byte // as much of it as was captured
	size     int    // of all of it
	payload  int    // where the transport header begins
	whole    bool   // all of it was captured, and it is no fragment
}

func (f frame) String() string {
	return fmt.Sprintf("%s -> %s proto %d icmp %d, %d bytes", f.src, f.dst, f.proto, f.icmp, len(f.data))
}

// sniffer captures at a device of a machine all that it gets and sends, and remembers what is wrong with it.
type sniffer struct {
	where  string
	fd     int
	stop   int // an eventfd
	done   chan struct{}
	judge  func(frame) error
	mu     sync.Mutex
	wrong  []string
	frames int
	partly int // with a partial checksum
}

// sniff captures until the test ends, which fails if a frame had a wrong checksum, or judge found it wrong.
func sniff(t testing.TB, where string, m machine, device string, judge func(frame) error) *sniffer {
	t.Helper()
	s := &sniffer{where: where, done: make(chan struct{}), judge: judge}
	must(t, m.Do(func() (err error) {
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	}))
	must(t, unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1))
	must(t, unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
	must(t, unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: indexOf(t, m, device)}))
	var err error
	s.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
	must(t, err)
	go s.run()
	t.Cleanup(func() { s.end(t) })
	return s
}

// end stops the capture once it has read all that came, and reports what was wrong.
func (s *sniffer) end(t testing.TB) {
	t.Helper()
	unix.Write(s.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-s.done
	unix.Close(s.fd)
	unix.Close(s.stop)
	for _, w := range s.wrong[:min(len(s.wrong), 8)] {
		t.Errorf("captured at %s: %s", s.where, w)
	}
	if n := len(s.wrong); n > 8 {
		t.Errorf("captured at %s: %d more", s.where, n-8)
	}
}

func (s *sniffer) run() {
	defer close(s.done)
	buf, oob := make([]byte, 4096), make([]byte, 256)
	for {
		n, oobn, _, from, err := unix.Recvmsg(s.fd, buf, oob, unix.MSG_TRUNC)
		if err == nil {
			s.see(buf[:min(n, len(buf))], n, oob[:oobn], from.(*unix.SockaddrLinklayer))
			continue
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.stop), Events: unix.POLLIN}}
		unix.Poll(fds, -1)
		if fds[0].Revents == 0 && fds[1].Revents != 0 {
			return
		}
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// see judges a captured packet of n bytes.
func (s *sniffer) see(data []byte, n int, oob []byte, from *unix.SockaddrLinklayer) {
	f, ok := parseFrame(data, n, htons(from.Protocol))
	if !ok {
		return
	}
	f.out = from.Pkttype == unix.PACKET_OUTGOING
	f.partial = status(oob)&unix.TP_STATUS_CSUMNOTREADY != 0
	err := f.checksum()
	if err == nil {
		err = s.judge(f)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frames++
	if f.partial {
		s.partly++
	}
	if err != nil {
		s.wrong = append(s.wrong, fmt.Sprintf("%s: %v", f, err))
	}
}

// seen is how many packets there were, and how many of them had a partial checksum.
func (s *sniffer) seen() (frames, partly int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.frames, s.partly
}

// status is what the kernel says of a packet beside it.
func status(oob []byte) uint32 {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= int(unsafe.Sizeof(unix.TpacketAuxdata{})) {
			return binary.NativeEndian.Uint32(m.Data)
		}
	}
	return 0
}

// parseFrame reads a packet of n bytes, of which data is the beginning; false: it is none of IP.
func parseFrame(data []byte, n int, protocol uint16) (f frame, ok bool) {
	f.icmp = -1
	var src, dst netip.Addr
	fragment := false
	switch {
	case protocol == unix.ETH_P_IP && len(data) >= 20:
		total := int(binary.BigEndian.Uint16(data[2:]))
		if total > 0 && total < len(data) {
			data, n = data[:total], total // the frame may be longer
		}
		src, dst = netip.AddrFrom4([4]byte(data[12:16])), netip.AddrFrom4([4]byte(data[16:20]))
		f.proto, f.payload = bpf.Proto(data[9]), int(data[0]&15)*4
		where := binary.BigEndian.Uint16(data[6:])
		fragment, f.later = where&0x3fff != 0, where&0x1fff != 0
	case protocol == unix.ETH_P_IPV6 && len(data) >= 40:
		src, dst = netip.AddrFrom16([16]byte(data[8:24])), netip.AddrFrom16([16]byte(data[24:40]))
		f.proto, f.payload = bpf.Proto(data[6]), 40
		if f.proto == unix.IPPROTO_FRAGMENT && len(data) >= 48 {
			fragment, f.later = true, binary.BigEndian.Uint16(data[42:])&0xfff8 != 0
			f.proto, f.payload = bpf.Proto(data[40]), 48
		}
	default:
		return f, false
	}
	f.size = n
	f.data, f.whole = data, !fragment && n == len(data)
	f.src, f.dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	transport := data[min(f.payload, len(data)):]
	switch {
	case f.later:
	case isICMP(f.proto) && len(transport) > 0:
		f.icmp = int(transport[0])
	case (f.proto == bpf.TCP || f.proto == bpf.UDP || f.proto == bpf.SCTP) && len(transport) >= 4:
		f.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(transport))
		f.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(transport[2:]))
	}
	return f, true
}

func isICMP(p bpf.Proto) bool { return p == unix.IPPROTO_ICMP || p == unix.IPPROTO_ICMPV6 }

// checksum verifies the checksums of a packet: where the device was to complete it, that of the pseudo header.
func (f frame) checksum() error {
	if f.src.Addr().Is4() && sum(f.data[:min(f.payload, len(f.data))], 0) != 0xffff {
		return errors.New("wrong checksum of the IPv4 header")
	}
	at, known := map[bpf.Proto]int{bpf.TCP: 16, bpf.UDP: 6, unix.IPPROTO_ICMPV6: 2, unix.IPPROTO_ICMP: 2}[f.proto]
	if !known || len(f.data) < f.payload+at+2 || f.later || f.partial && (f.dst.Port() == vxlanPort || isICMP(f.proto)) {
		return nil // it is that of the inner or the quoted packet which is to be completed
	}
	transport := f.data[f.payload:]
	is := binary.BigEndian.Uint16(transport[at:])
	switch {
	case f.partial:
		if want := f.pseudo(len(transport)); f.whole && is != want {
			return fmt.Errorf("the checksum to be completed is %#x, want %#x", is, want)
		}
	case !f.whole, f.proto == bpf.UDP && is == 0 && f.src.Addr().Is4():
	case f.proto == unix.IPPROTO_ICMP:
		if sum(transport, 0) != 0xffff {
			return errors.New("wrong checksum")
		}
	default:
		if sum(transport, uint32(f.pseudo(len(transport)))) != 0xffff {
			return errors.New("wrong checksum")
		}
	}
	return nil
}

// pseudo is the sum of the pseudo header.
func (f frame) pseudo(length int) uint16 {
	words := append(f.src.Addr().AsSlice(), f.dst.Addr().AsSlice()...)
	words = append(words, 0, 0, byte(length>>8), byte(length), 0, byte(f.proto))
	return sum(words, 0)
}

// sum adds 16-bit words, as checksums do, to start.
func sum(data []byte, start uint32) uint16 {
	total := uint64(start)
	for ; len(data) >= 2; data = data[2:] {
		total += uint64(data[0])<<8 | uint64(data[1])
	}
	if len(data) == 1 {
		total += uint64(data[0]) << 8
	}
	for total > 0xffff {
		total = total&0xffff + total>>16
	}
	return uint16(total)
}

// isOf reports whether an address is one of some.
func isOf(a netip.Addr, addrs ...netip.Addr) bool {
	for _, b := range addrs {
		if a == b {
			return true
		}
	}
	return false
}

// atClient judges what a client outside gets: from Services, by their addresses and ports, errors by routers, too.
func atClient(f frame) error {
	if f.out || !isPlanned(f.dst.Addr()) || !isPlanned(f.src.Addr()) && f.icmp != 137 {
		return nil
	}
	for _, fam := range families {
		for k, backend := range fam.backends {
			if isICMP(f.proto) && k != host && f.src.Addr() == backend {
				return fmt.Errorf("an error by %s", k)
			}
		}
	}
	if isICMP(f.proto) {
		if f.icmp == 137 && f.proto == unix.IPPROTO_ICMPV6 || f.icmp == 5 && f.proto == unix.IPPROTO_ICMP {
			return errors.New("a redirect: it would lead the client past the node")
		}
		return nil
	}
	for _, fam := range families {
		if f.later && isOf(f.src.Addr(), fam.vip, fam.node, fam.nodeSecond) {
			return nil
		}
		if isOf(f.src.Addr(), fam.vip, fam.node, fam.nodeSecond) && isServed(f.src.Port()) {
			return nil
		}
	}
	return errors.New("it has no source that a client may see")
}

// isServed reports whether a port is one that clients of this package ask for.
func isServed(port uint16) bool {
	return port >= routed.port() && port < routed.port()+300 || port >= routed.nodePort() && port <= second.nodePort() || port == nodesOwnPort
}

// isPlanned reports whether an address is not only of a link.
func isPlanned(a netip.Addr) bool { return !a.IsLinkLocalUnicast() && !a.IsMulticast() && a.IsValid() }

// leaving judges what a node sends by an uplink: to clients from Services, to backends elsewhere from itself, by a port for
// masquerade or, where a CNI masquerades, any.
func leaving(f frame, anyPort bool) error {
	if f.out || !isPlanned(f.src.Addr()) || !isPlanned(f.dst.Addr()) {
		return nil
	}
	for _, fam := range families {
		if isOf(f.dst.Addr(), fam.client, fam.neighbour, fam.neighbourSecond) {
			return atClient(f)
		}
		for _, k := range []kind{remote, second, overlay} {
			if !isICMP(f.proto) && f.dst.Addr() == fam.backends[k] && (f.src.Addr() != fam.source(k) || !anyPort && !f.later && f.src.Port() < masqueradePorts.FirstPort) {
				return fmt.Errorf("it has not the source of %s", k)
			}
		}
	}
	return nil
}
