package outlive

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

// The way from a client outside to the node.
const (
	uplink   = "up0"
	nodeIP   = "203.0.113.1"
	clientIP = "203.0.113.2"
	nodePort = 30007
)

// outside is a client outside of the cluster, on the segment of the node's uplink.
type outside struct {
	*lab.Host
	n *node
}

// newOutside makes a client for a node, which has a Service with a node port, and the runtime's packet path.
func newOutside(t *testing.T, before func(*outside)) *outside {
	o := &outside{}
	newNodeOf(t, firsthop, func(n *node) {
		o.n = n
		n.flags = []string{"--packet-path"}
		var err error
		o.Host, err = n.AddHost("outside")
		n.must(err)
		n.must(n.Link(func(nl *netlink.Handle) error {
			return nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: uplink}, PeerName: "eth0", PeerNamespace: netlink.NsFd(o.fd())})
		}))
		n.must(n.Link(func(nl *netlink.Handle) error { return o.setUp(nl, uplink, nodeIP, clientIP) }))
		n.must(o.Link(func(nl *netlink.Handle) error { return o.setUp(nl, "eth0", clientIP, "") }))
		s := service("outside", "10.96.2.2", corev1.ServicePort{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 7, NodePort: nodePort},
			corev1.ServicePort{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 7, NodePort: nodePort})
		s.Spec.Type = corev1.ServiceTypeNodePort
		n.put("services", s)
		o.endpoint("old")
		if before != nil {
			before(o)
		}
	})
	return o
}

// fd is a handle of the client's network namespace.
func (o *outside) fd() int {
	f, err := os.Open(o.Netns)
	o.n.must(err)
	o.n.Cleanup(func() { f.Close() })
	return int(f.Fd())
}

func (o *outside) setUp(nl *netlink.Handle, name, addr, gateway string) error {
	dev, err := nl.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr + "/24")
	if err != nil {
		return err
	}
	if err := nl.AddrAdd(dev, a); err != nil {
		return err
	}
	if err := nl.LinkSetUp(dev); err != nil || gateway == "" {
		return err
	}
	return nl.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway), LinkIndex: dev.Attrs().Index})
}

// endpoint makes backends the endpoints of the client's Service.
func (o *outside) endpoint(names ...string) {
	port := int32(7000 + echoPort)
	ports := []discoveryv1.EndpointPort{slicePort("tcp", corev1.ProtocolTCP, port), slicePort("udp", corev1.ProtocolUDP, port)}
	var ips []string
	for _, name := range names {
		ips = append(ips, o.n.backend[name].ip.String())
	}
	o.n.put("endpointslices", slice("outside", ports, ips...))
}

// session is a connection, or a UDP socket, of the client.
type session struct{ net.Conn }

func (o *outside) dial(network string) (session, error) {
	ctx, cancel := context.WithTimeout(o.n.Context(), time.Second)
	defer cancel()
	conn, err := o.DialContext(ctx, network, netip.AddrPortFrom(netip.MustParseAddr(nodeIP), nodePort).String())
	if err == nil {
		o.n.Cleanup(func() { conn.Close() })
	}
	return session{conn}, err
}

// ask returns who answers, and checks that the client was seen as itself; "" where nobody answers in a second.
func (s session) ask(t *testing.T) string {
	t.Helper()
	s.SetDeadline(time.Now().Add(time.Second))
	if _, err := s.Write([]byte("hello\n")); err != nil {
		return ""
	}
	buf := make([]byte, 1<<12)
	got, err := s.Read(buf)
	if err != nil {
		return ""
	}
	r, err := standin.ParseReply(buf[:got])
	if err != nil {
		t.Fatal(err)
	}
	if r.Peer.String() != s.LocalAddr().String() {
		t.Errorf("%s saw %s, want the client itself, %s", r.Server, r.Peer, s.LocalAddr())
	}
	return r.Server
}

// await dials until somebody answers.
func (o *outside) await(network, server string) (s session) {
	o.n.Helper()
	if !within(func() bool {
		var err error
		s, err = o.dial(network)
		return err == nil && s.ask(o.n.T) == server
	}) {
		o.n.Fatalf("%s never answers by %s; the runtime says\n%s", server, network, o.n.said())
	}
	return s
}

// programs counts what is attached to the node's uplink.
func (o *outside) programs() (count int) {
	o.n.Helper()
	o.n.must(o.n.Do(func() error {
		dev, err := netlink.LinkByName(uplink)
		if err != nil {
			return err
		}
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			found, err := link.QueryPrograms(link.QueryOptions{Target: dev.Attrs().Index, Attach: at})
			if err != nil {
				return err
			}
			count += len(found.Programs)
		}
		return nil
	}))
	return count
}

func (o *outside) pins() (out []string) {
	for _, pin := range bpf.PinsBelow(o.n.BPFFS).PacketMapPins() {
		if _, err := os.Lstat(pin); err == nil {
			out = append(out, pin)
		}
	}
	return out
}

// TestClientsOutsideAreServed has the runtime serve a client outside of the cluster, whose connections outlive it.
func TestClientsOutsideAreServed(t *testing.T) {
	lab.NeedsLinux(t, 6, 6, "tcx")
	o := newOutside(t, nil)
	tcp, udp := o.await("tcp4", "old"), o.await("udp4", "old")

	o.endpoint("new")
	if !within(func() bool { return udp.ask(t) == "new" }) {
		t.Errorf("a UDP socket never reaches the new endpoint; the runtime says\n%s", o.n.said())
	}
	if got := tcp.ask(t); got != "old" {
		t.Errorf("the connection is answered by %q, want old, which is still there", got)
	}
	o.n.end(unix.SIGKILL)
	for name, s := range map[string]session{"old": tcp, "new": udp} {
		if got := s.ask(t); got != name {
			t.Errorf("with the runtime killed, %q answers, want %s", got, name)
		}
	}
	o.n.start()
	o.await("tcp4", "new")
	if got := tcp.ask(t); got != "old" {
		t.Errorf("after a restart, the connection is answered by %q", got)
	}
	var status []byte
	if !within(func() bool {
		status, _ = o.n.command("status").CombinedOutput()
		return strings.Contains(string(status), "served at "+uplink+" (tcx)")
	}) {
		t.Errorf("status never says so:\n%s", status)
	}

	o.n.end(unix.SIGTERM)
	o.n.flags = nil
	o.n.start()
	if !within(func() bool { return o.programs() == 0 && len(o.pins()) == 0 }) {
		t.Errorf("with the packet path off, there are %d programs, and %v", o.programs(), o.pins())
	}
}

// TestClientsOutsideAndUninstall has nothing of a packet path be left whose runtime was killed.
func TestClientsOutsideAndUninstall(t *testing.T) {
	lab.NeedsLinux(t, 6, 6, "tcx")
	o := newOutside(t, nil)
	o.await("tcp4", "old")
	if o.programs() != 2 {
		t.Errorf("%d programs are attached, want 2", o.programs())
	}
	o.n.end(unix.SIGKILL)
	if out, err := o.n.command("uninstall", "--force").CombinedOutput(); err != nil {
		t.Fatalf("uninstall: %v\n%s", err, out)
	}
	if _, err := os.Lstat(bpf.PinsBelow(o.n.BPFFS).Dir); o.programs() != 0 || !os.IsNotExist(err) {
		t.Errorf("%d programs are left; pins: %v", o.programs(), err)
	}
}

// TestClientsOutsideKeepTheirProxy has UDP sockets stay at the endpoint that another service proxy chose before the packet path was
// turned on. Each would get another endpoint by chance otherwise.
func TestClientsOutsideKeepTheirProxy(t *testing.T) {
	lab.NeedsLinux(t, 6, 6, "tcx")
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft")
	}
	var former []session
	o := newOutside(t, func(o *outside) {
		cmd := o.n.Command(o.n.Context(), "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(fmt.Sprintf(`table ip proxy {
			chain in { type nat hook prerouting priority -100; udp dport %d dnat to %s:%d; }
		}`, nodePort, o.n.backend["old"].ip, 7000+echoPort))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Skipf("needs nftables and its NAT: %v %s", err, out)
		}
		for range 10 {
			udp, err := o.dial("udp4")
			o.n.must(err)
			former = append(former, udp)
			if !within(func() bool { return udp.ask(t) == "old" }) {
				t.Fatal("the other proxy does not serve")
			}
		}
		o.endpoint("old", "new")
	})
	o.await("udp4", "new")
	for range 3 {
		for _, udp := range former {
			if got := udp.ask(t); got != "old" {
				t.Fatalf("%q answers, want old; the runtime says\n%s", got, o.n.said())
			}
		}
	}
}
