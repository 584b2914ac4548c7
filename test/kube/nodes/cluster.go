package nodes

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/kube/binaries"
	"github.com/firsthop/firsthop/test/lab"
)

// The addresses of a cluster, those that kubeadm would choose but for those of pods.
const (
	ServiceCIDR = "10.96.0.0/16"
	PodCIDR     = "10.244.0.0/16"
	// API is where the API server's Service is, which has the address first in ServiceCIDR.
	API = "10.96.0.1:443"
)

const (
	bridge = "fh-lan"
	router = "10.77.0.1"
)

// patience is how long anything may take on a machine that is busy with other tests.
const patience = 5 * time.Minute

// Cluster is a network for nodes. Its methods fail the test that made it, and are for one goroutine.
type Cluster struct {
	// Endpoint is kubeadm's controlPlaneEndpoint: New sets the first node's address. A scene may change it before Kubeadm.
	Endpoint string
	// InitConfig is what kubeadm init is given, and Version the Kubernetes that it is told to install.
	InitConfig, Version string
	// Binds are directories of the machine that nodes have, too, and where. A test may add some before Node.
	Binds map[string]string

	t     testing.TB
	hub   *lab.Lab
	files files
	nodes []*Node
}

// New makes a network, and the programs and images of nodes if they are not in the cache yet. It skips the test where the
// machine can't run nodes, and says why.
func New(t testing.TB) *Cluster {
	t.Helper()
	Need(t)
	c := &Cluster{t: t, files: ensure(t), InitConfig: InitConfig, Binds: map[string]string{}}
	c.Version = c.files.version
	c.alone()
	c.must(lab.Reap())
	c.hub = lab.New(t)
	c.Endpoint = address(0) + ":6443"
	for name, value := range map[string]string{"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.send_redirects": "0", "net.ipv4.conf.default.send_redirects": "0"} {
		c.must(c.hub.Sysctl(name, value))
	}
	c.must(c.hub.Link(func(nl *netlink.Handle) error {
		// An address of its own: else it is that of a port, and changes when a node loses its power; the others would not
		// reach each other's pods until they ask for it again.
		attrs := netlink.LinkAttrs{Name: bridge, HardwareAddr: net.HardwareAddr{0x02, 0, 0, 0, 0, 1}}
		if err := nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("create bridge: %w", err)
		}
		return setUp(nl, bridge, router+"/24")
	}))
	c.must(c.files.copyDeploy(filepath.Join(c.hub.Dir, "deploy")))
	t.Cleanup(func() {
		if t.Failed() {
			c.report()
		}
		for _, n := range c.nodes {
			n.Cut()
		}
	})
	return c
}

// alone waits until no other cluster is on this machine: nodes of two would use up its instances of inotify. The lock ends
// with the test, or with its process.
func (c *Cluster) alone() {
	c.t.Helper()
	dir, err := os.Open(os.TempDir()) // a lock of a directory leaves no file
	c.must(err)
	c.t.Cleanup(func() { dir.Close() })
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		fmt.Fprintln(os.Stderr, "waiting for another cluster on this machine to end")
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		}
	}
	c.must(err)
}

// Build is how what nodes are made of was built, for a test that needs more.
func (c *Cluster) Build() binaries.Config { return c.files.build }

// Program is the path of one of the nodes' programs on the machine.
func (c *Cluster) Program(name string) string { return c.files.program(name) }

// Need skips the test where the machine can't run nodes, and says why.
func Need(t testing.TB) {
	t.Helper()
	if reason := unfit(); reason != "" {
		t.Skip(reason)
	}
}

// unfit says why this machine can't run nodes, "" when it can.
func unfit() string {
	if os.Geteuid() != 0 {
		return "needs root"
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || !strings.Contains(string(known), "\toverlay\n") {
		return "needs overlayfs: modprobe overlay"
	}
	if reason := unfitCgroups(); reason != "" {
		return reason
	}
	if mb := availableMB(); mb < neededMB {
		return fmt.Sprintf("needs %d MB of memory, and %d MB are available", neededMB, mb)
	}
	return ""
}

// unfitCgroups says why systemd and a kubelet can't have a part of the machine's cgroups. Where all controllers are in
// version 2, a cgroup that has some for its children can't have processes, and labs put theirs there.
func unfitCgroups() string {
	hierarchies, err := lab.Hierarchies()
	if err != nil {
		return err.Error()
	}
	has := make(map[string]bool)
	for _, h := range hierarchies {
		for option := range strings.SplitSeq(h.Options, ",") {
			has[option] = true
		}
	}
	for _, option := range []string{"cpu", "cpuset", "memory", "pids", "name=systemd"} {
		if !has[option] {
			return fmt.Sprintf("needs cgroups of version 1 beside version 2 (systemd.unified_cgroup_hierarchy=0), and %s is not mounted there", option)
		}
	}
	return ""
}

// neededMB is what three nodes take, one of them a control plane, with the memory of their containers' files.
const neededMB = 3000

func availableMB() int {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		var kb int
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); err == nil {
			return kb / 1024
		}
	}
	return 0
}

// Node adds a node and boots it.
func (c *Cluster) Node(name string) *Node {
	c.t.Helper()
	i := len(c.nodes)
	n := &Node{
		Name: name, IP: address(i), c: c, pods: fmt.Sprintf("10.244.%d.0/24", i),
		disk: filepath.Join(c.hub.Dir, name), port: fmt.Sprintf("fh-port%d", i),
	}
	for _, dir := range []string{"upper", "work", "root", "containerd", "kubelet", "etcd", "log"} {
		c.must(os.MkdirAll(filepath.Join(n.disk, dir), 0o755))
	}
	c.nodes = append(c.nodes, n)
	n.Boot()
	return n
}

// address is that of the node with an index from 0 on.
func address(i int) string { return fmt.Sprintf("10.77.0.%d", 11+i) }

// plug gives a node that boots its interface, and the hub the way to its pods.
func (c *Cluster) plug(n *Node) error {
	return c.hub.Link(func(hub *netlink.Handle) error {
		lan, err := hub.LinkByName(bridge)
		if err != nil {
			return err
		}
		ns, err := os.Open(n.lab.Netns)
		if err != nil {
			return err
		}
		defer ns.Close()
		err = hub.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: n.port, MasterIndex: lan.Attrs().Index},
			PeerName:  "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd())),
		})
		if err != nil {
			return fmt.Errorf("create veth pair: %w", err)
		}
		if err := setUp(hub, n.port); err != nil {
			return err
		}
		err = n.lab.Link(func(nl *netlink.Handle) error {
			if err := setUp(nl, "eth0", n.IP+"/24"); err != nil {
				return err
			}
			return nl.RouteReplace(&netlink.Route{Gw: net.ParseIP(router)})
		})
		if err != nil {
			return err
		}
		pods := netip.MustParsePrefix(n.pods)
		return hub.RouteReplace(&netlink.Route{
			LinkIndex: lan.Attrs().Index, Gw: net.ParseIP(n.IP),
			Dst: &net.IPNet{IP: pods.Addr().AsSlice(), Mask: net.CIDRMask(pods.Bits(), 32)},
		})
	})
}

// unplug removes the hub's interface to a node, if it is there.
func (c *Cluster) unplug(n *Node) error {
	return c.hub.Link(func(hub *netlink.Handle) error {
		link, err := hub.LinkByName(n.port)
		var notFound netlink.LinkNotFoundError
		if errors.As(err, &notFound) {
			return nil
		}
		if err == nil {
			err = hub.LinkDel(link)
		}
		if errors.Is(err, unix.ENODEV) { // the kernel was faster
			return nil
		}
		return err
	})
}

// setUp gives an interface its addresses and sets it up.
func setUp(nl *netlink.Handle, name string, addrs ...string) error {
	link, err := nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if err := nl.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", a, name, err)
		}
	}
	return nl.LinkSetUp(link)
}

// must ends the test on an error.
func (c *Cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// report says what a failed test's nodes look like.
func (c *Cluster) report() {
	for _, n := range c.nodes {
		if n.pid == 0 {
			c.t.Logf("%s has no power", n.Name)
			continue
		}
		for _, script := range []string{
			"systemctl --failed --no-legend --plain; firsthop status",
			"kubectl get nodes,pods -A -o wide",
			"journalctl --no-pager -q -o short-precise -n 40",
			"ctr -n k8s.io containers ls -q | wc -l",
		} {
			out, err := n.Try(script)
			c.t.Logf("%s: %s: %v\n%s", n.Name, script, err, out)
		}
	}
}
