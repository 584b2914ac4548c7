package natinit

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

const childEnv = "FIRSTHOP_TEST_CHILD"

// childJob is what a child is to bring about.
type childJob struct {
	BPFFS, Cgroup string
	Features      bpf.Features
	Balancer      bpf.Balancer
	Backends      []int
	Remove        bool
}

// child is the test binary in another role.
func child(mode string, args []string) int {
	var err error
	switch mode {
	case "init":
		err = childInit(os.Stdin, os.Stdout)
	case "connects":
		err = childConnects(args[0], os.Stdin, os.Stdout)
	case "names":
		err = childNames(args[0], args[1], os.Stdin, os.Stdout)
	case "udp":
		err = childUDP(args[0], os.Stdin, os.Stdout)
	default:
		err = fmt.Errorf("unknown mode %q", mode)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// childInit reads a job, says that it begins, and does it.
func childInit(in io.Reader, out io.Writer) error {
	var job childJob
	if err := json.NewDecoder(in).Decode(&job); err != nil {
		return err
	}
	n := &node{pins: bpf.PinsBelow(job.BPFFS), cgroup: job.Cgroup}
	fmt.Fprintln(out, "begins")
	if job.Remove {
		return n.remove()
	}
	r, err := n.begin(job.Features, job.Balancer, services(job.Backends...))
	if err != nil {
		return err
	}
	if err := r.attached.Commit(); err != nil {
		return err
	}
	return r.seeded.Commit()
}

// childUDP sends a datagram of one unconnected socket for every line that it reads, and says who answered from where.
func childUDP(to string, in io.Reader, out io.Writer) error {
	target := netip.MustParseAddrPort(to)
	conn, err := net.ListenUDP("udp", nil) // an IPv6 socket that takes both families
	if err != nil {
		return err
	}
	defer conn.Close()
	buf := make([]byte, 1<<12)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		if _, err := conn.WriteToUDPAddrPort(lines.Bytes(), target); err != nil {
			fmt.Fprintln(out, "error", err)
			continue
		}
		size, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		r, err := standin.ParseReply(buf[:size])
		if err != nil {
			return err
		}
		fmt.Fprintln(out, r.Server, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	}
	return nil
}

// named is what a child saw of its sockets.
type named struct {
	Made  int            // sockets that connected
	Asked int            // sessions' datagrams that were answered
	Wrong map[string]int // what was not as it should be, and how often
}

// childNames makes connected sockets until its input ends, by a Service of UDP and one of TCP, and asks each for its peer
// at once and, some of them, as long as the child lives. It also has unconnected sockets that send all the time.
func childNames(udp, tcp string, in io.Reader, out io.Writer) error {
	var (
		mu    sync.Mutex
		r     = named{Wrong: map[string]int{}}
		ended = make(chan struct{})
		group sync.WaitGroup
		ready = make(chan struct{}, 16)
	)
	wrong := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		r.Wrong[fmt.Sprintf(format, args...)]++
	}
	connects := func(network, vip string) {
		defer group.Done()
		var kept []net.Conn
		defer func() {
			for _, c := range kept {
				c.Close()
			}
		}()
		check := func(c net.Conn, when string) {
			if is := peerOf(c); is != vip {
				wrong("%s: the peer of %s is %s %s", network, vip, is, when)
			}
		}
		for i := 0; ; i++ {
			c, err := net.Dial(network, vip)
			if err != nil {
				wrong("%s: %s", network, err)
			} else {
				mu.Lock()
				r.Made++
				mu.Unlock()
				check(c, "at once")
				if i%16 == 0 && len(kept) < 200 {
					kept = append(kept, c)
				} else {
					c.Close()
				}
			}
			if i == 0 {
				ready <- struct{}{}
			}
			if i%64 == 0 {
				for _, c := range kept {
					check(c, "later")
				}
			}
			select {
			case <-ended:
				for _, c := range kept {
					check(c, "at the end")
				}
				return
			default:
			}
		}
	}
	talks := func() {
		defer group.Done()
		conn, err := net.ListenUDP("udp", nil)
		if err != nil {
			wrong("listen: %s", err)
			return
		}
		defer conn.Close()
		server, buf := "", make([]byte, 1<<12)
		for i := 0; ; i++ {
			select {
			case <-ended:
				return
			default:
			}
			if _, err := conn.WriteToUDPAddrPort([]byte("hello\n"), netip.MustParseAddrPort(udp)); err != nil {
				wrong("send: %s", err)
				continue
			}
			size, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				wrong("receive: %s", err)
				continue
			}
			reply, err := standin.ParseReply(buf[:size])
			switch from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); {
			case err != nil:
				wrong("parse: %s", err)
			case from.String() != udp:
				wrong("the answer of %s came from %s", udp, from)
			case server != "" && reply.Server != server:
				wrong("a session changed its backend")
			}
			server = reply.Server
			mu.Lock()
			r.Asked++
			mu.Unlock()
			if i == 0 {
				ready <- struct{}{}
			}
		}
	}
	group.Add(7)
	for range 2 {
		go connects("udp", udp)
	}
	go connects("tcp", tcp)
	for range 4 {
		go talks()
	}
	for range 7 {
		<-ready
	}
	fmt.Fprintln(out, "begins")
	_, _ = io.Copy(io.Discard, in)
	close(ended)
	group.Wait()
	return json.NewEncoder(out).Encode(r)
}

// peerOf asks the kernel for a socket's peer: the library has what it connected to.
func peerOf(c net.Conn) (peer string) {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err.Error()
	}
	err = raw.Control(func(fd uintptr) {
		switch sa, err := unix.Getpeername(int(fd)); sa := sa.(type) {
		case *unix.SockaddrInet4:
			peer = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
		case *unix.SockaddrInet6:
			peer = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
		default:
			peer = fmt.Sprint(err)
		}
	})
	if err != nil {
		return err.Error()
	}
	return peer
}

// slice is what a child took for a number of connects.
type slice struct {
	Wall, CPU time.Duration // CPU is that of the connecting thread, in which loopback's receive side runs, too
}

// childConnects makes, for every number that it reads, as many connects, one after the other.
func childConnects(to string, in io.Reader, out io.Writer) error {
	runtime.LockOSThread()
	target := netip.MustParseAddrPort(to)
	var family int
	var sa unix.Sockaddr
	if target.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: target.Addr().As4(), Port: int(target.Port())}
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: target.Addr().As16(), Port: int(target.Port())}
	}
	var count int
	for {
		if _, err := fmt.Fscan(in, &count); err != nil {
			return nil // the end
		}
		wall, cpu := clock(unix.CLOCK_MONOTONIC), clock(unix.CLOCK_THREAD_CPUTIME_ID)
		for range count {
			if err := connectAndReset(family, sa); err != nil {
				return err
			}
		}
		s := slice{clock(unix.CLOCK_MONOTONIC) - wall, clock(unix.CLOCK_THREAD_CPUTIME_ID) - cpu}
		if err := json.NewEncoder(out).Encode(s); err != nil {
			return err
		}
	}
}

func clock(id int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// connectAndReset ends a connection with a RST: TIME_WAIT would use up the ports.
func connectAndReset(family int, sa unix.Sockaddr) error {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	return unix.Connect(fd, sa)
}

// piped starts a program that reads what it is to do and writes what came of it. It has ended when the test has.
func piped(t testing.TB, cmd *lab.Cmd) (io.WriteCloser, io.Reader) {
	t.Helper()
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	return in, out
}

// connector is a child that connects on demand.
type connector struct {
	t   testing.TB
	in  io.WriteCloser
	out *json.Decoder
}

func startConnector(t testing.TB, m clients.Machine, target string) *connector {
	t.Helper()
	cmd := m.Command(t.Context(), self(t), target)
	cmd.Env = append(os.Environ(), childEnv+"=connects")
	in, out := piped(t, cmd)
	return &connector{t, in, json.NewDecoder(out)}
}

func (c *connector) connect(count int) (s slice) {
	c.t.Helper()
	_, err := fmt.Fprintln(c.in, count)
	must(c.t, err)
	must(c.t, c.out.Decode(&s))
	return s
}

// self is the test binary.
func self(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	must(t, err)
	return path
}

// udpSocket is a socket of a process in the lab.
type udpSocket struct {
	t   testing.TB
	in  io.WriteCloser
	out *bufio.Scanner
}

func (n *node) openUDP(t testing.TB, target string) *udpSocket {
	t.Helper()
	cmd := n.l.Command(t.Context(), self(t), target)
	cmd.Env = append(os.Environ(), childEnv+"=udp")
	in, out := piped(t, cmd)
	return &udpSocket{t, in, bufio.NewScanner(out)}
}

// exchange sends a datagram and returns who answered and from which address.
func (s *udpSocket) exchange() (server, from string) {
	s.t.Helper()
	_, err := fmt.Fprintln(s.in, "hello")
	must(s.t, err)
	if !s.out.Scan() {
		s.t.Fatal("the socket's process ended:", s.out.Err())
	}
	if _, err := fmt.Sscan(s.out.Text(), &server, &from); err != nil {
		s.t.Fatalf("%q: %v", s.out.Text(), err)
	}
	return server, from
}

// startChild starts an init stage in a process of its own and returns when it begins.
func startChild(t testing.TB, job childJob) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), self(t))
	cmd.Env = append(os.Environ(), childEnv+"=init")
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	must(t, json.NewEncoder(in).Encode(job))
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "begins\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	return cmd
}
