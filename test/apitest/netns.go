package apitest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const inNetns = "FIRSTHOP_TEST_NETNS"

// The addresses of the tests' own network.
const (
	// Net4 is local: every address in it can be listened on. Of IPv6, which
	// binds only to addresses, there are fd00:99::1 to fd00:99::9.
	Net4 = "10.99.0.0/24"
	// Silent addresses take packets and never answer.
	Silent4 = "10.97.0.2"
	Silent6 = "fd00:97::2"
	// Unreachable4 has an unreachable route.
	Unreachable4 = "10.98.0.1"
)

// Main runs the tests of a package in a network namespace of their own: the
// whole process, so that nothing needs to know. Loopback addresses never
// become discovered endpoints, so the tests need others, and a test must not
// touch the network of the machine. Without root it tries a user namespace.
func Main(m *testing.M) {
	if os.Getenv(inNetns) != "" {
		if err := setUp(); err != nil {
			fmt.Fprintln(os.Stderr, "set up the network of the tests:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// A proxy that nobody reaches: whatever heeds these variables fails. They
	// are set before the process starts because net/http reads them only once.
	cmd.Env = append(os.Environ(), inNetns+"=1", "HTTPS_PROXY=http://"+Unreachable4+":3128", "HTTP_PROXY=http://"+Unreachable4+":3128", "NO_PROXY=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if uid := os.Geteuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(max(1, exit.ExitCode()))
	case err != nil:
		fmt.Fprintln(os.Stderr, "these tests run in a network namespace of their own, which needs root or user namespaces:", err)
		os.Exit(1)
	}
}

func setUp() error {
	if _, err := netlink.LinkByName("fh-silent"); err == nil {
		return nil // a fuzz worker, in the namespace of its coordinator
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	_, net4, _ := net.ParseCIDR(Net4)
	_, unreachable, _ := net.ParseCIDR(Unreachable4 + "/32")
	for i := range 9 {
		if err := addAddr(lo, fmt.Sprintf("fd00:99::%d/128", i+1)); err != nil {
			return err
		}
	}
	routes := []*netlink.Route{
		{LinkIndex: lo.Attrs().Index, Dst: net4, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST},
		{Dst: unreachable, Type: unix.RTN_UNREACHABLE},
	}
	for _, r := range routes {
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("route %s: %w", r.Dst, err)
		}
	}
	return silence()
}

// silence makes a link to a neighbour that is not there.
func silence() error {
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "fh-silent"}, PeerName: "fh-silent-peer"}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	peer, err := netlink.LinkByName(veth.PeerName)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(peer); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return err
	}
	for _, a := range []string{"10.97.0.1/24", "fd00:97::1/64"} {
		if err := addAddr(veth, a); err != nil {
			return err
		}
	}
	for _, a := range []string{Silent4, Silent6} {
		n := &netlink.Neigh{LinkIndex: veth.Index, IP: net.ParseIP(a), State: netlink.NUD_PERMANENT,
			HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
		if err := netlink.NeighAdd(n); err != nil {
			return fmt.Errorf("neighbour %s: %w", a, err)
		}
	}
	return nil
}

func addAddr(link netlink.Link, a string) error {
	addr, err := netlink.ParseAddr(a)
	if err != nil {
		return err
	}
	addr.Flags = unix.IFA_F_NODAD // usable at once
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("address %s: %w", a, err)
	}
	return nil
}
