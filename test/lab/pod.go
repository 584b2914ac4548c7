package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// What a pod sees as its router. Every pod's interface on the node carries both.
const (
	podGateway4 = "169.254.1.1"
	podGateway6 = "fe80::1"
)

// Pod is a second machine behind the lab: a network namespace joined to the lab's by a veth pair and routed by it, and
// a cgroup below the lab's. It is a pod of a routed network, or a client outside, as the test wants.
type Pod struct {
	Name   string // of the network namespace in `ip netns`
	Netns  string
	Cgroup string
	Veth   string // the interface on the lab's side; the pod's own is eth0

	space
	nl       *netlink.Handle
	cgroupFD *os.File
	starter  *starter
}

// AddPod makes a pod with the given addresses and turns on forwarding in the lab. The name has at most 12 letters. The
// pod goes with the lab.
func (l *Lab) AddPod(name string, addrs ...netip.Addr) (*Pod, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("add a pod to a lab that is closed")
	}
	p := &Pod{Name: l.Name + "-" + name, Veth: "fh-" + name, space: space{netns.None()}}
	p.Netns = netnsPath(p.Name)
	l.pods = append(l.pods, p)

	var err error
	if p.Cgroup, err = l.NewCgroup(name); err != nil {
		return nil, err
	}
	if p.cgroupFD, err = os.Open(p.Cgroup); err != nil {
		return nil, err
	}
	if p.ns, p.nl, err = createNetns(p.Name); err != nil {
		return nil, err
	}
	if p.starter, err = newStarter(p.ns); err != nil {
		return nil, err
	}
	if err := l.joinPod(p, addrs); err != nil {
		return nil, fmt.Errorf("join pod %s: %w", name, err)
	}
	return p, nil
}

// joinPod makes the veth pair, then addresses and routes on both sides.
func (l *Lab) joinPod(p *Pod, addrs []netip.Addr) error {
	for _, name := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		if err := l.Sysctl(name, "1"); err != nil {
			return err
		}
	}
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: p.Veth},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(int(p.ns)),
	}
	if err := l.nl.LinkAdd(pair); err != nil {
		return fmt.Errorf("create veth pair: %w", err)
	}
	node, err := setUp(l.nl, p.Veth, podGateway4+"/32", podGateway6+"/64")
	if err != nil {
		return err
	}
	// As routed networks do: the node answers ARP for everything it can route.
	if err := l.Sysctl("net.ipv4.conf."+p.Veth+".proxy_arp", "1"); err != nil {
		return err
	}
	var own []string
	for _, a := range addrs {
		own = append(own, netip.PrefixFrom(a, a.BitLen()).String())
	}
	pod, err := setUp(p.nl, "eth0", own...)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		dst := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
		if err := l.nl.RouteReplace(&netlink.Route{Dst: dst, LinkIndex: node, Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route to %s: %w", a, err)
		}
	}
	return addDefaultRoutes(p.nl, pod)
}

// setUp gives an interface its addresses, sets it up and returns its index.
func setUp(nl *netlink.Handle, name string, prefixes ...string) (int, error) {
	link, err := nl.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find %s: %w", name, err)
	}
	for _, s := range prefixes {
		addr, err := parseAddr(s)
		if err != nil {
			return 0, err
		}
		if err := nl.AddrReplace(link, addr); err != nil {
			return 0, fmt.Errorf("add %s to %s: %w", s, name, err)
		}
	}
	return link.Attrs().Index, nl.LinkSetUp(link)
}

func addDefaultRoutes(nl *netlink.Handle, link int) error {
	for _, gw := range []string{podGateway4, podGateway6} {
		// On-link: the gateway is in no prefix of the pod's.
		route := &netlink.Route{Gw: net.ParseIP(gw), LinkIndex: link, Flags: int(netlink.FLAG_ONLINK)}
		if err := nl.RouteReplace(route); err != nil {
			return fmt.Errorf("add default route by %s: %w", gw, err)
		}
	}
	return nil
}

// Link runs fn with netlink of the pod's network namespace.
func (p *Pod) Link(fn func(nl *netlink.Handle) error) error { return fn(p.nl) }

// Sysctl sets a sysctl, named as for Lab.Sysctl, inside the pod's network namespace.
func (p *Pod) Sysctl(name, value string) error { return sysctlIn(p.ns, name, value) }

// Command is Lab.Command in the pod's network namespace and cgroup.
func (p *Pod) Command(ctx context.Context, name string, args ...string) *Cmd {
	return newCmd(ctx, p.starter, p.cgroupFD, name, args)
}

// close releases what AddPod made, however far it came. The cgroup goes with the lab's.
func (p *Pod) close() error {
	var errs []error
	if p.starter != nil {
		p.starter.stop()
	}
	if p.cgroupFD != nil {
		errs = append(errs, p.cgroupFD.Close())
	}
	if p.nl != nil {
		p.nl.Close()
	}
	if p.ns.IsOpen() {
		errs = append(errs, p.ns.Close())
	}
	errs = append(errs, deleteNetns(filepath.Base(p.Netns)))
	return errors.Join(errs...)
}
