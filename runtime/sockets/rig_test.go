package sockets

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/runtime/netns"
	"github.com/firsthop/firsthop/runtime/services"
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
	t      testing.TB
	l      *lab.Lab
	maps   *bpf.Maps
	served []int
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
	n.served = which
	var svcs []nat.Service
	for _, p := range []bpf.Proto{bpf.UDP, bpf.TCP} {
		for vip, backend := range map[string]func(int) netip.AddrPort{vip4: backend4, vip6: backend6} {
			at := netip.MustParseAddrPort(vip)
			svc := nat.Service{Name: fmt.Sprint(p, vip), Frontends: []bpf.FrontendKey{bpf.FrontendKeyOf(at, p)}, VIPs: []netip.Addr{at.Addr()}, Sticky: p == bpf.UDP, AllowEmpty: true}
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

// reconciler makes one whose clock the test moves, that looks when the test says so, and knows what the node serves.
func (n *node) reconciler(options ...func(*Config)) *rig {
	n.t.Helper()
	r := &rig{n: n}
	cfg := Config{
		Log: slog.New(slog.NewTextHandler(&r.log, nil)), Namespaces: netns.Config{Host: n.l.Netns},
		Maps: func() (Maps, error) { return n.sockMaps(), nil },
	}
	for _, o := range options {
		o(&cfg)
	}
	r.Reconciler = New(cfg)
	began := time.Now()
	r.Reconciler.now = func() time.Time { return began.Add(r.ahead) }
	r.Reconciler.pause = func(time.Duration) time.Duration { return 0 }
	r.Reconciler.patience, r.Reconciler.quickTime = time.Minute, time.Minute
	r.tell(n.served...)
	return r
}

func (n *node) sockMaps() Maps {
	return Maps{
		RevNat:   []*ebpf.Map{n.maps.Map(bpf.MapUDPSockRevNat), n.maps.Map(bpf.MapUDPRevNat)},
		Affinity: []*ebpf.Map{n.maps.Map(bpf.MapUDPSockAffinity), n.maps.Map(bpf.MapSockAffinity)},
		TCP:      n.maps.Map(bpf.MapSockRevNat), Log: n.maps.Map(bpf.MapUDPLog), Usage: n.maps.Map(bpf.MapSockUsage), Batch: lab.KernelFeatures().Batch,
	}
}

// rig is a Reconciler in the test's hands.
type rig struct {
	*Reconciler
	n     *node
	log   lab.Log
	ahead time.Duration
}

// tell says what was written: the Service of all VIPs, on these backends.
func (r *rig) tell(which ...int) {
	r.Set(dns, ports(which...))
	r.Begin()
	r.Done(nil)
}

// lead writes it, too.
func (r *rig) lead(which ...int) {
	r.n.t.Helper()
	r.n.serve(which...)
	r.tell(which...)
}

// step looks once, a time later.
func (r *rig) step(later time.Duration) Status {
	r.n.t.Helper()
	r.ahead += later
	r.look(r.n.t.Context())
	st := r.Status()
	if st.Error != nil {
		r.n.t.Error(st.Error)
	}
	return st
}

var dns = types.NamespacedName{Namespace: "kube-system", Name: "kube-dns"}

// ports are those of the Service, each frontend with the backends of its family.
func ports(which ...int) (list []services.Port) {
	if len(which) == 1 && which[0] < 0 { // gone
		return nil
	}
	for _, p := range []bpf.Proto{bpf.TCP, bpf.UDP} {
		for vip, backend := range map[string]func(int) netip.AddrPort{vip4: backend4, vip6: backend6} {
			at := netip.MustParseAddrPort(vip)
			port := services.Port{Key: services.PortKey{Service: dns, Proto: p, IPv6: at.Addr().Is6()}}
			port.Frontends, port.AllowEmpty = []bpf.FrontendKey{bpf.FrontendKeyOf(at, p)}, true
			for _, i := range which {
				port.Backends = append(port.Backends, backend(i))
			}
			port.Serving = port.Backends
			list = append(list, port)
		}
	}
	return list
}

func (n *node) addPod(i int) clients.Machine {
	n.t.Helper()
	p, err := n.l.AddPod(fmt.Sprint("pod", i), netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", i)))
	must(n.t, err)
	return p
}

const childEnv = "FIRSTHOP_SOCKETS_CHILD"

var (
	discard    = slog.New(slog.DiscardHandler)
	background = context.Background()
)

// The test binary is also the application: a process in a lab's cgroup with one socket. Its kind is in the environment, its
// argument comes last.
func TestMain(m *testing.M) {
	kind, arg := os.Getenv(childEnv), os.Args[len(os.Args)-1]
	switch kind {
	case "":
		os.Exit(lab.RunMain(m))
	case "many":
		first, _ := strconv.Atoi(arg)
		fmt.Println("ended:", manySockets(loadSockets, first))
	case "reconcile":
		fmt.Println(reconcileApart(arg))
	case "reconcile without ptrace":
		fmt.Println(withoutPtrace())
	default:
		fmt.Println("ended:", application(kind, arg))
	}
}

// application opens a socket ("udp4", "udp6", "tcp4", "tcp6", perhaps " reuseport"; IPv6 ones connect to IPv4 addresses in
// their v4-mapped form), bound to a port or an address and port, and makes the calls that it reads, a line a call. It
// answers each with a line: "ok", what came, or the error's name. " inherited" has one already.
func application(kind, arg string) error {
	kind, option, _ := strings.Cut(kind, " ")
	family, how := unix.AF_INET, unix.SOCK_DGRAM
	if strings.HasSuffix(kind, "6") {
		family = unix.AF_INET6
	}
	if strings.HasPrefix(kind, "tcp") {
		how = unix.SOCK_STREAM
	}
	a := &caller{kind: kind, family: family, fd: 3}
	if option != "inherited" {
		var err error
		if a.fd, err = unix.Socket(family, how, 0); err != nil {
			return err
		}
		share := map[bool]int{false: unix.SO_REUSEADDR, true: unix.SO_REUSEPORT}[option == "reuseport"]
		if err := unix.SetsockoptInt(a.fd, unix.SOL_SOCKET, share, 1); err != nil {
			return err
		}
		at, err := netip.ParseAddrPort(arg)
		if port, isPort := strconv.Atoi(arg); isPort == nil {
			at, err = netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port)), nil
		}
		if err != nil {
			return err
		}
		if at.Port() != 0 {
			if err := unix.Bind(a.fd, appAddr(family, at)); err != nil {
				return err
			}
		}
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		call, arg, _ := strings.Cut(in.Text(), " ")
		fmt.Println(a.call(call, arg))
	}
	return nil
}

// caller is an application.
type caller struct {
	kind       string
	family, fd int
	flying     [2]int // the ends on which its socket flies
}

func say(err error) string {
	if errno := unix.Errno(0); errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	if err != nil {
		return err.Error()
	}
	return "ok"
}

// call makes a call that is about the descriptor, or else one of do.
func (a *caller) call(call, arg string) string {
	switch call {
	case "cookie":
		cookie, err := unix.GetsockoptUint64(a.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			return say(err)
		}
		return fmt.Sprint(cookie)
	case "dup":
		fd, err := unix.FcntlInt(uintptr(a.fd), unix.F_DUPFD, 100+a.fd)
		if err == nil {
			unix.Close(a.fd)
			a.fd = fd
		}
		return say(err)
	case "reopen": // another socket has its number
		fd, err := unix.Socket(a.family, unix.SOCK_DGRAM, 0)
		if err == nil {
			err = unix.Dup3(fd, a.fd, 0)
			unix.Close(fd)
		}
		return say(err)
	case "handover": // another process goes on with it
		exe, err := os.Executable()
		if err != nil {
			return say(err)
		}
		next := exec.Command(exe, "0")
		next.Env = append(os.Environ(), childEnv+"="+a.kind+" inherited")
		next.Stdin, next.Stdout, next.Stderr = os.Stdin, os.Stdout, os.Stderr
		next.ExtraFiles = []*os.File{os.NewFile(uintptr(a.fd), "socket")}
		if err := next.Start(); err != nil {
			return say(err)
		}
		fmt.Println("ok")
		os.Exit(0)
	case "fly":
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
		if err == nil {
			err = unix.Sendmsg(pair[0], []byte{1}, unix.UnixRights(a.fd), nil, 0)
			unix.Close(a.fd)
		}
		a.flying = pair
		return say(err)
	case "land":
		oob := make([]byte, 64)
		_, n, _, _, err := unix.Recvmsg(a.flying[1], make([]byte, 1), oob, 0)
		if err != nil {
			return say(err)
		}
		messages, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil {
			return say(err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err == nil {
			a.fd = fds[0]
		}
		return say(err)
	case "hold":
		return say(hold(a.fd))
	}
	return do(a.fd, a.family, call, arg)
}

// hold has a thread hold the socket's lock indefinitely: by a corked datagram from a page that nobody delivers.
func hold(fd int) error {
	uffd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0) // poll wants the latter
	if errno != 0 {
		return errno
	}
	size := os.Getpagesize()
	page, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	const (
		uffdioAPI      = 0xc018aa3f
		uffdioRegister = 0xc020aa00
		modeMissing    = 1
	)
	api := [3]uint64{0xaa, 0, 0}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uffd, uffdioAPI, uintptr(unsafe.Pointer(&api))); errno != 0 {
		return errno
	}
	at := uintptr(unsafe.Pointer(&page[0]))
	register := [4]uint64{uint64(at), uint64(size), modeMissing, 0}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uffd, uffdioRegister, uintptr(unsafe.Pointer(&register))); errno != 0 {
		return errno
	}
	go func() {
		_, _, _ = unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), at, 100, unix.MSG_MORE, 0, 0)
	}()
	missed := []unix.PollFd{{Fd: int32(uffd), Events: unix.POLLIN}}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if n, err := unix.Poll(missed, 1000); n == 1 || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return errors.New("the page was not missed")
}

func do(fd, family int, call, arg string) string {
	buf := make([]byte, 4096)
	wait := unix.Timeval{Sec: 10}
	switch call {
	case "connect":
		return say(unix.Connect(fd, appAddr(family, netip.MustParseAddrPort(arg))))
	case "send":
		_, err := unix.Write(fd, []byte("hello\n"))
		return say(err)
	case "sendto":
		return say(unix.Sendto(fd, []byte("hello\n"), 0, appAddr(family, netip.MustParseAddrPort(arg))))
	case "peer", "local":
		ask := map[string]func(int) (unix.Sockaddr, error){"peer": unix.Getpeername, "local": unix.Getsockname}[call]
		sa, err := ask(fd)
		if err != nil {
			return say(err)
		}
		switch a := sa.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
		case *unix.SockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port)).String()
		}
		return fmt.Sprintf("%T", sa)
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

func appAddr(family int, ap netip.AddrPort) unix.Sockaddr {
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
	t       testing.TB
	in      *os.File
	out     *bufio.Scanner
	process *os.Process
	wait    func() error
}

// open starts one on a machine. With a port, its socket is bound to it.
func open(t testing.TB, m clients.Machine, kind string, port int) *app {
	t.Helper()
	return openKind(t, m, kind, strconv.Itoa(port))
}

func openKind(t testing.TB, m clients.Machine, kind, arg string) *app {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := m.Command(t.Context(), exe, arg)
	cmd.Env = append(os.Environ(), childEnv+"="+kind)
	cmd.Stderr = os.Stderr
	r, w, err := os.Pipe()
	must(t, err)
	cmd.Stdin = r
	out, answers, err := os.Pipe()
	must(t, err)
	cmd.Stdout = answers
	must(t, cmd.Start())
	r.Close()
	answers.Close()
	a := &app{t, w, bufio.NewScanner(out), cmd.Process, sync.OnceValue(cmd.Wait)}
	t.Cleanup(func() { a.quit(); out.Close() })
	return a
}

// quit ends the process, and waits for that.
func (a *app) quit() {
	a.in.Close()
	_ = a.wait()
	for a.out.Scan() { // one that goes on with its socket
	}
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

func addrPorts(ss ...string) (list []netip.AddrPort) {
	for _, s := range ss {
		list = append(list, netip.MustParseAddrPort(s))
	}
	return list
}
