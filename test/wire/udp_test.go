package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// long is a datagram of three fragments.
const long = 4000

func TestUDPFragmentsBothWays(t *testing.T) {
	b := newBench(t)
	b.serve(t)
	b.watch(t)
	try := func() error {
		return eachKind(func(f family, k kind, to netip.AddrPort) error {
			if f.name == v6.name && k == overlay {
				if err := tryUntilAnswered(b.client, to, make([]byte, long)); err != nil {
					return err
				}
			}
			return b.tryUDP(f, b.client, k, to, 5, long)
		})
	}
	must(t, try())
	b.offloads(t, false, setTxChecksum, setRxChecksum)
	must(t, try())
	if dropped := b.dropped(t, bpf.CountRedirect); len(dropped) > 0 {
		t.Errorf("dropped %v", dropped)
	}
}

// tryUntilAnswered sends datagrams until one is answered: where a router does not fragment what is too large for its next
// device, the first one is lost.
func tryUntilAnswered(m machine, to netip.AddrPort, request []byte) error {
	c, err := dial(m, "udp", fresh(to), to)
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 1<<16)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := c.Write(request); err != nil && !errors.Is(err, unix.EMSGSIZE) {
			return err
		}
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := c.Read(buf)
		if !isTimeout(err) && !errors.Is(err, unix.EMSGSIZE) {
			return err
		}
	}
	return fmt.Errorf("no datagram to %s was ever answered", to)
}

// fragments builds a datagram as fragments, from their network header on.
func fragments(t testing.TB, src, dst netip.AddrPort, id uint32, payload []byte) (all [][]byte) {
	t.Helper()
	udp := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
	var network gopacket.NetworkLayer = &layers.IPv6{Version: 6, NextHeader: layers.IPProtocolUDP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	if src.Addr().Is4() {
		network = &layers.IPv4{Version: 4, Protocol: layers.IPProtocolUDP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	}
	must(t, udp.SetNetworkLayerForChecksum(network))
	datagram := serialize(t, udp, gopacket.Payload(payload))
	const most = 1400 // a multiple of 8
	for at := 0; at < len(datagram); at += most {
		end := min(at+most, len(datagram))
		part := gopacket.Payload(datagram[at:end])
		more := end < len(datagram)
		if src.Addr().Is4() {
			ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 60, Id: uint16(id), Protocol: layers.IPProtocolUDP, FragOffset: uint16(at / 8), SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
			if more {
				ip.Flags = layers.IPv4MoreFragments
			}
			all = append(all, serialize(t, ip, part))
			continue
		}
		ip := &layers.IPv6{Version: 6, HopLimit: 60, NextHeader: layers.IPProtocolIPv6Fragment, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
		header := []byte{unix.IPPROTO_UDP, 0, byte(at >> 8), byte(at), byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}
		if more {
			header[3] |= 1
		}
		all = append(all, serialize(t, ip, gopacket.Payload(append(header, part...))))
	}
	return all
}

func serialize(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...))
	return buf.Bytes()
}

// raw sends packets, from their network header on, from a machine.
func raw(t testing.TB, m machine, dst netip.Addr, packets ...[]byte) {
	t.Helper()
	must(t, m.Do(func() error {
		family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: dst.As16()})
		if dst.Is4() {
			family, to = unix.AF_INET, &unix.SockaddrInet4{Addr: dst.As4()}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, p := range packets {
			if err := unix.Sendto(fd, p, 0, to); err != nil {
				return err
			}
		}
		return nil
	}))
}

// A fragment that comes before the first one of its datagram has no ports: it is dropped and counted, and the datagram
// is lost. Others are not.
func TestUDPFragmentsInReversedOrderAreCounted(t *testing.T) {
	b := newBench(t)
	b.serve(t)
	b.watch(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			pc, err := b.client.ListenPacket("udp", netip.AddrPortFrom(f.client, 0).String())
			must(t, err)
			defer pc.Close()
			must(t, pc.SetReadDeadline(time.Now().Add(patience)))
			to := f.frontend(routed)
			from := addrPort(pc.LocalAddr())
			request := make([]byte, long)
			before := b.count(t, bpf.CountFragment)
			reversed := fragments(t, from, to, 1, request)
			raw(t, b.client, to.Addr(), reversed[2], reversed[1], reversed[0])
			awaitCount(t, b, bpf.CountFragment, before+2)
			raw(t, b.client, to.Addr(), fragments(t, from, to, 2, request)...)
			buf := make([]byte, 1<<16)
			n, by, err := pc.ReadFrom(buf)
			must(t, err)
			if addrPort(by) != to {
				t.Errorf("the answer is by %s, want %s", by, to)
			}
			must(t, b.answered(f, routed, from, request, buf[:n]))
			if n := b.count(t, bpf.CountFragment); n != before+2 {
				t.Errorf("%d fragments were dropped, want 2", n-before)
			}
		})
	}
}

// One socket that is not connected talks to several Services: each answer is from whom was asked.
func TestUDPAnswersComeFromWhomWasAsked(t *testing.T) {
	b := newBench(t)
	b.serve(t)
	b.watch(t)
	for _, f := range families {
		pc, err := b.client.ListenPacket("udp", netip.AddrPortFrom(f.client, 0).String())
		must(t, err)
		defer pc.Close()
		must(t, pc.SetReadDeadline(time.Now().Add(patience)))
		buf := make([]byte, 1<<16)
		for range 3 {
			for _, k := range kinds {
				to := f.frontend(k)
				_, err := pc.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(to))
				must(t, err)
				n, by, err := pc.ReadFrom(buf)
				must(t, err)
				if addrPort(by) != to {
					t.Errorf("%s: asked %s, and %s answers", k, to, by)
				}
				must(t, b.answered(f, k, addrPort(pc.LocalAddr()), []byte("hello"), buf[:n]))
			}
		}
	}
}
