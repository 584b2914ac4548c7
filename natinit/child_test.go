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
	"testing"

	"github.com/firsthop/firsthop/bpf"
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
		return Remove(n.pins, n.cgroup)
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
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { in.Close(); cmd.Wait() })
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
