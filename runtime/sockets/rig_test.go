package sockets

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/runtime/netns"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

// What the node serves, over UDP and TCP.
const (
	vip4, vip6 = "10.96.0.10:53", "[fd00:96::10]:53"
	port       = 5353 // of the backends
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// node serves four Services by programs in the kernel.
type node struct {
	t    testing.TB
	l    *lab.Lab
	maps *bpf.Maps
}

func backend4(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)}), port)
}

func backend6(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", 11+i)), port)
}

// newNode starts two backends, 0 and 1.
func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{t: t, l: lab.New(t)}
	for i := range 2 {
		for _, at := range []netip.AddrPort{backend4(i), backend6(i)} {
			must(t, n.l.AddAddr(netip.PrefixFrom(at.Addr(), at.Addr().BitLen()).String()))
			u, err := standin.StartUDPEcho(n.l, name(i), at)
			must(t, err)
			t.Cleanup(u.Close)
			e, err := standin.StartTCPEcho(n.l, name(i), at)
			must(t, err)
			t.Cleanup(e.Close)
		}
	}
	n.serve(0)
	var err error
	n.maps, err = bpf.OpenMaps(bpf.PinsBelow(n.l.BPFFS), false)
	must(t, err)
	t.Cleanup(func() { n.maps.Close() })
	return n
}

func name(i int) string { return fmt.Sprint("backend-", i) }

// serve makes the Services lead to these backends alone.
func (n *node) serve(which ...int) {
	n.t.Helper()
	var svcs []nat.Service
	for _, p := range []bpf.Proto{bpf.UDP, bpf.TCP} {
		for vip, backend := range map[string]func(int) netip.AddrPort{vip4: backend4, vip6: backend6} {
			at := netip.MustParseAddrPort(vip)
			svc := nat.Service{Name: fmt.Sprint(p, vip), Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(at, p)}, VIPs: []netip.Addr{at.Addr()}, Sticky: p == bpf.UDP}
			for _, i := range which {
				svc.Backends = append(svc.Backends, backend(i))
			}
			svcs = append(svcs, svc)
		}
	}
	features := bpf.Features(lab.KernelFeatures())
	pins := bpf.PinsBelow(n.l.BPFFS)
	seeded, err := natinit.Seed(natinit.SeedConfig{Pins: pins, Sizes: bpf.Sizes{Frontends: 256, Services: 2048, Backends: 256}, Features: features, Services: svcs})
	must(n.t, err)
	defer seeded.Close()
	var st unix.Stat_t
	must(n.t, unix.Stat(n.l.Cgroup, &st))
	attached, err := attach.Attach(attach.Config{Pins: pins, Target: attach.Cgroup{Path: n.l.Cgroup, ID: st.Ino, Links: features.Link}, Programs: attach.Balancer{Balancer: bpf.Balancer{UDP: true}, Maps: seeded.Maps, Features: features}})
	must(n.t, err)
	defer attached.Close()
	must(n.t, attached.Commit())
	must(n.t, seeded.Commit())
}

func (n *node) config() Config {
	return Config{
		Reverse: n.maps.Map(bpf.MapUDPSockRevNat), Peer: n.maps.Map(bpf.MapSockRevNat), Batch: lab.KernelFeatures().Batch,
		Namespaces: netns.Config{Host: n.l.Netns},
	}
}

// gone are all that a backend served, over UDP, TCP or both.
func gone(i int, protos ...bpf.Proto) (list []Backend) {
	for _, p := range protos {
		list = append(list, Backend{Proto: p, Addr: backend4(i)}, Backend{Proto: p, Addr: backend6(i)})
	}
	return list
}

func (n *node) destroy(cfg Config, gone []Backend) Result {
	n.t.Helper()
	res, err := Destroy(n.t.Context(), cfg, gone)
	must(n.t, err)
	return res
}

func (n *node) addPod(i int) clients.Machine {
	n.t.Helper()
	p, err := n.l.AddPod(fmt.Sprint("pod", i), netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", i)))
	must(n.t, err)
	return p
}

const childEnv = "FIRSTHOP_SOCKETS_CHILD"

// The test binary is also the application: a process in a lab's cgroup with one socket.
func TestMain(m *testing.M) {
	if kind := os.Getenv(childEnv); kind == "destroy" {
		fmt.Println(destroyOwn())
		return
	} else if kind != "" {
		fmt.Println("ended:", application(kind))
		return
	}
	os.Exit(lab.RunMain(m))
}

// application opens a socket ("udp4", "udp6", "tcp4", "tcp6"; IPv6 ones connect to IPv4 addresses in their v4-mapped
// form) and makes the calls that it reads, a line a call. It answers each with a line: "ok", what came, or the error's name.
func application(kind string) error {
	var port int
	if _, err := fmt.Sscanf(os.Args[len(os.Args)-1], "%d", &port); err != nil {
		return err
	}
	family, how := unix.AF_INET, unix.SOCK_DGRAM
	if strings.HasSuffix(kind, "6") {
		family = unix.AF_INET6
	}
	if strings.HasPrefix(kind, "tcp") {
		how = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(family, how, 0)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if port != 0 {
		if err := unix.Bind(fd, sockaddr(family, netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port)))); err != nil {
			return err
		}
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		call, arg, _ := strings.Cut(in.Text(), " ")
		fmt.Println(do(fd, family, call, arg))
	}
	return nil
}

func do(fd, family int, call, arg string) string {
	buf := make([]byte, 4096)
	say := func(err error) string {
		if err != nil {
			return unix.ErrnoName(err.(unix.Errno))
		}
		return "ok"
	}
	wait := unix.Timeval{Sec: 10}
	switch call {
	case "connect":
		return say(unix.Connect(fd, sockaddr(family, netip.MustParseAddrPort(arg))))
	case "send":
		_, err := unix.Write(fd, []byte("hello\n"))
		return say(err)
	case "sendto":
		return say(unix.Sendto(fd, []byte("hello\n"), 0, sockaddr(family, netip.MustParseAddrPort(arg))))
	case "peek": // what happened, without a wait
		wait = unix.Timeval{Usec: 1}
		fallthrough
	case "recv":
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
			return say(err)
		}
		n, err := unix.Read(fd, buf)
		for err == unix.EINTR { // Go's own signals: with a time-out, the kernel doesn't begin again (signal(7))
			n, err = unix.Read(fd, buf)
		}
		if err != nil || n == 0 {
			return say(err)
		}
		r, err := standin.ParseReply(buf[:n])
		if err != nil {
			return err.Error()
		}
		return r.Server
	}
	return "no such call"
}

func sockaddr(family int, ap netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	addr := ap.Addr().As16()
	if ap.Addr().IsUnspecified() {
		addr = [16]byte{}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: addr}
}

// app is such a process.
type app struct {
	t   testing.TB
	in  *os.File
	out *bufio.Scanner
}

// open starts one on a machine. With a port, its socket is bound to it.
func open(t testing.TB, m clients.Machine, kind string, port int) *app {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := m.Command(t.Context(), exe, fmt.Sprint(port))
	cmd.Env = append(os.Environ(), childEnv+"="+kind)
	cmd.Stderr = os.Stderr
	r, w, err := os.Pipe()
	must(t, err)
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	r.Close()
	t.Cleanup(func() { w.Close(); _ = cmd.Wait() })
	return &app{t, w, bufio.NewScanner(out)}
}

// begin makes the application call; end is what it says.
func (a *app) begin(format string, args ...any) {
	a.t.Helper()
	_, err := fmt.Fprintf(a.in, format+"\n", args...)
	must(a.t, err)
}

func (a *app) end() string {
	a.t.Helper()
	if !a.out.Scan() {
		a.t.Fatal("the application ended:", a.out.Err())
	}
	return a.out.Text()
}

func (a *app) do(format string, args ...any) string {
	a.t.Helper()
	a.begin(format, args...)
	return a.end()
}

func (a *app) want(want, format string, args ...any) {
	a.t.Helper()
	if got := a.do(format, args...); got != want {
		a.t.Errorf("%s: %s, want %s", fmt.Sprintf(format, args...), got, want)
	}
}

// connects returns which backend answers after a connect.
func (a *app) connects(to string) string {
	a.t.Helper()
	a.want("ok", "connect %s", to)
	return a.exchange()
}

func (a *app) exchange() string {
	a.t.Helper()
	a.want("ok", "send")
	return a.do("recv")
}
