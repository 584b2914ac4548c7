package wire

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// ofDevice are the addresses of the device of a test: the node's and the neighbour's.
var ofDevice = map[string][2]string{v4.name: {"198.18.3.11", "198.18.3.100"}, v6.name: {"2001:db8:3::11", "2001:db8:3::100"}}

// onDevice has the neighbour use all Services by a further uplink of the node.
func onDevice(t *testing.T, device string, l3 bool, among []family, join func(t testing.TB, b *bench)) {
	b := newBench(t)
	b.serve(t)
	join(t, b)
	for i, m := range []machine{b.node, b.neighbour} {
		for _, f := range among {
			length := map[string]string{v4.name: "/24", v6.name: "/64"}[f.name]
			setUp(t, m, device, ofDevice[f.name][i]+length)
		}
	}
	for _, f := range among {
		route(t, b.neighbour, bits(f.vip), ofDevice[f.name][0])
	}
	more := newUplinks(t, b, haveTCX())
	more.devices, more.progs.uplink.L3 = []string{device}, l3
	more.attach(t)
	arrived := sniff(t, device+" of the neighbour", b.neighbour, device, atClient)
	var all errgroup.Group
	for _, f := range among {
		for _, k := range kinds {
			to := f.frontend(k)
			all.Go(func() error {
				return errors.Join(b.tryTCP(f, b.neighbour, k, to), b.tryUDP(f, b.neighbour, k, to, 3, 1000), tryEnds(b.neighbour, to))
			})
		}
		for _, network := range []string{"tcp", "udp"} {
			all.Go(func() error { return refused(b.neighbour, network, netip.AddrPortFrom(f.vip, unserved)) })
		}
	}
	must(t, all.Wait())
	if n, _ := arrived.seen(); n == 0 {
		t.Errorf("nothing was captured at %s", device)
	}
}

// What a kernel says that lacks a kind of devices.
func needsKind(t testing.TB, what string, err error) {
	t.Helper()
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) {
		t.Skipf("needs %s, which this kernel lacks", what)
	}
	must(t, err)
}

func TestUplinkWithoutLinkHeader(t *testing.T) {
	t.Run("tun", func(t *testing.T) {
		t.Parallel()
		onDevice(t, "tun0", true, families, joinTun)
	})
	t.Run("ipip", func(t *testing.T) {
		t.Parallel()
		onDevice(t, "ipip0", true, families[:1], func(t testing.TB, b *bench) {
			for _, end := range []struct {
				machine
				own, other netip.Addr
			}{{b.node, v4.node, v4.neighbour}, {b.neighbour, v4.neighbour, v4.node}} {
				needsKind(t, "ipip", end.Link(func(nl *netlink.Handle) error {
					return nl.LinkAdd(&netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "ipip0"}, Local: end.own.AsSlice(), Remote: end.other.AsSlice(), Ttl: 64})
				}))
				setUp(t, end.machine, "ipip0")
			}
		})
	})
}

func TestUplinkOfAVLAN(t *testing.T) {
	onDevice(t, "eth0.5", false, families, func(t testing.TB, b *bench) {
		for _, m := range []machine{b.node, b.neighbour} {
			needsKind(t, "VLAN devices", m.Link(func(nl *netlink.Handle) error {
				parent, err := nl.LinkByName("eth0")
				if err != nil {
					return err
				}
				return nl.LinkAdd(&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "eth0.5", ParentIndex: parent.Attrs().Index}, VlanId: 5})
			}))
			setUp(t, m, "eth0.5")
		}
	})
}

func TestUplinkOfABond(t *testing.T) {
	onDevice(t, "bond0", false, families, func(t testing.TB, b *bench) {
		cable(t, b.node, "port0", b.neighbour, "bond0")
		bond := netlink.NewLinkBond(netlink.LinkAttrs{Name: "bond0"})
		bond.Mode = netlink.BOND_MODE_ACTIVE_BACKUP
		needsKind(t, "bonding", b.node.Link(func(nl *netlink.Handle) error {
			if err := nl.LinkAdd(bond); err != nil {
				return err
			}
			port, err := nl.LinkByName("port0")
			if err != nil {
				return err
			}
			return errors.Join(nl.LinkSetDown(port), nl.LinkSetMaster(port, bond), nl.LinkSetUp(port), nl.LinkSetUp(bond))
		}))
	})
}

// joinTun joins node and neighbour by devices whose packets this process carries.
func joinTun(t testing.TB, b *bench) {
	t.Helper()
	ends := [2]*os.File{openTun(t, b.node), openTun(t, b.neighbour)}
	var wg sync.WaitGroup
	for i := range ends {
		wg.Go(func() { carry(ends[i], ends[1-i]) })
	}
	t.Cleanup(func() {
		for _, f := range ends {
			f.Close()
		}
		wg.Wait()
	})
	for _, m := range []machine{b.node, b.neighbour} {
		setUp(t, m, "tun0")
	}
}

func carry(from io.Reader, to io.Writer) {
	for buf := make([]byte, 1<<16); ; {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		_, _ = to.Write(buf[:n]) // an error: the other end is not up yet
	}
}

// openTun makes a tun device.
func openTun(t testing.TB, m machine) (f *os.File) {
	t.Helper()
	err := m.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request := struct {
			name  [unix.IFNAMSIZ]byte
			flags uint16
			rest  [22]byte
		}{flags: unix.IFF_TUN | unix.IFF_NO_PI}
		copy(request.name[:], "tun0")
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&request))); errno != 0 {
			unix.Close(fd)
			return fmt.Errorf("make tun device: %w", errno)
		}
		f = os.NewFile(uintptr(fd), "tun0")
		return nil
	})
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("needs /dev/net/tun, of CONFIG_TUN")
	}
	must(t, err)
	return f
}

// SCTP of the kernel, over the programs. Its associations of one address each are what Services can have.
func TestSCTPReachesBackends(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		t.Skipf("needs SCTP, which this kernel lacks (%v)", err)
	}
	unix.Close(fd)
	b := newBench(t)
	b.watch(t)
	must(t, eachKind(func(f family, k kind, to netip.AddrPort) error { return b.trySCTP(f, k, to) }))
}

// trySCTP connects, and has some bytes sent back.
func (b *bench) trySCTP(f family, k kind, to netip.AddrPort) error {
	server, err := sctpSocket(b.at(k), f.backend(k), func(fd int, sa unix.Sockaddr) error {
		return errors.Join(unix.Bind(fd, sa), unix.Listen(fd, 1))
	})
	if err != nil {
		return err
	}
	defer unix.Close(server)
	client, err := sctpSocket(b.client, to, unix.Connect)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", to, err)
	}
	defer unix.Close(client)
	accepted, from, err := unix.Accept4(server, unix.SOCK_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(accepted)
	own, err := unix.Getsockname(client)
	if err != nil {
		return err
	}
	if err := b.seen(f, k, ofSockaddr(own), ofSockaddr(from)); err != nil {
		return err
	}
	buf := make([]byte, 100)
	for _, way := range [][2]int{{client, accepted}, {accepted, client}} {
		if _, err := unix.Write(way[0], []byte("first hop")); err != nil {
			return err
		}
		if n, err := unix.Read(way[1], buf); err != nil || string(buf[:n]) != "first hop" {
			return fmt.Errorf("%q came: %w", buf[:n], err)
		}
	}
	return nil
}

func sctpSocket(m machine, at netip.AddrPort, prepare func(int, unix.Sockaddr) error) (fd int, err error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())})
	if at.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
	}
	err = m.Do(func() error {
		if fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP); err != nil {
			return err
		}
		timeout := unix.NsecToTimeval(int64(patience))
		err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout))
		if err == nil {
			err = prepare(fd, sa)
		}
		if err != nil {
			unix.Close(fd)
		}
		return err
	})
	return fd, err
}

func ofSockaddr(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// Frames of a VLAN pass the device below the VLAN's own, with the tag beside them: there, they are nobody's. The VLAN may be a pod's, or
// a virtual machine's.
func TestUplinkLeavesVLANsAboveItAlone(t *testing.T) {
	b := newBench(t)
	link := func(m machine) (dev netlink.Link) {
		must(t, m.Link(func(nl *netlink.Handle) (err error) {
			dev, err = nl.LinkByName("eth0")
			return err
		}))
		return dev
	}
	from, to := link(b.neighbour), link(b.node)
	var fd int
	must(t, b.neighbour.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	defer unix.Close(fd)
	answered := func() uint64 {
		counts, err := b.packet.Counts()
		must(t, err)
		return counts[bpf.CountRejected]
	}
	for _, f := range families {
		for _, tag := range []struct {
			name    string
			bytes   []byte
			answers uint64
		}{{"none", nil, 1}, {"a priority", []byte{0x81, 0, 0xe0, 0}, 1}, {"a VLAN", []byte{0x81, 0, 0, 5}, 0}} {
			src, dst := netip.AddrPortFrom(f.neighbour, 40000), netip.AddrPortFrom(f.vip, unserved)
			frame := slices.Concat(to.Attrs().HardwareAddr, from.Attrs().HardwareAddr, tag.bytes, syn(t, src, dst))
			before := answered()
			must(t, unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: from.Attrs().Index}))
			for end := time.Now().Add(time.Second); answered() == before && time.Now().Before(end); {
				time.Sleep(10 * time.Millisecond)
			}
			if n := answered() - before; n != tag.answers {
				t.Errorf("%s, a frame with a tag of %s: %d answers, want %d", f.name, tag.name, n, tag.answers)
			}
		}
	}
}

// syn builds a frame that asks for a connection, from its Ethernet type on.
func syn(t testing.TB, src, dst netip.AddrPort) []byte {
	t.Helper()
	tcp := &layers.TCP{SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), SYN: true, Window: 512, DataOffset: 5}
	var network gopacket.SerializableLayer
	kind := []byte{8, 0}
	if src.Addr().Is4() {
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 60, Protocol: layers.IPProtocolTCP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
		must(t, tcp.SetNetworkLayerForChecksum(ip))
		network = ip
	} else {
		ip := &layers.IPv6{Version: 6, HopLimit: 60, NextHeader: layers.IPProtocolTCP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
		must(t, tcp.SetNetworkLayerForChecksum(ip))
		network, kind = ip, []byte{0x86, 0xdd}
	}
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, network, tcp))
	return append(kind, buf.Bytes()...)
}
