package devices

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.RunMain(m)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rig is a node whose devices a test changes.
type rig struct {
	t testing.TB
	l *lab.Lab
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return &rig{t, lab.New(t)}
}

// do runs fn with netlink of the node.
func (r *rig) do(fn func(nl *netlink.Handle) error) {
	r.t.Helper()
	must(r.t, r.l.Link(fn))
}

// add makes a device and sets it up. It skips the test where the kernel has no such kind: that it has it in the virtual
// machines is not for this test to say.
func (r *rig) add(link netlink.Link) {
	r.t.Helper()
	err := r.l.Do(func() error { return netlink.LinkAdd(link) }) // not by the handle: tun is made by a file
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		r.t.Skipf("this kernel has no devices of kind %s: %v", link.Type(), err)
	}
	must(r.t, err)
	r.do(func(nl *netlink.Handle) error { return nl.LinkSetUp(link) })
}

// veth makes a pair of which both ends are here. The other end's name has an x in front.
func (r *rig) veth(name string) {
	r.t.Helper()
	r.add(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "x" + name})
	r.up("x" + name)
}

func (r *rig) bridge(name string) {
	r.t.Helper()
	r.add(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}})
}

// vxlan makes a device of a kind that leads off the node, which every kernel has.
func (r *rig) vxlan(name string, id int) {
	r.t.Helper()
	r.add(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: name}, VxlanId: id, Port: 4789, Learning: true})
}

func (r *rig) link(name string) (link netlink.Link) {
	r.t.Helper()
	r.do(func(nl *netlink.Handle) (err error) {
		link, err = nl.LinkByName(name)
		return err
	})
	return link
}

func (r *rig) index(name string) int { return r.link(name).Attrs().Index }

func (r *rig) up(name string) {
	r.t.Helper()
	r.do(func(nl *netlink.Handle) error { return nl.LinkSetUp(r.link(name)) })
}

func (r *rig) down(name string) {
	r.t.Helper()
	r.do(func(nl *netlink.Handle) error { return nl.LinkSetDown(r.link(name)) })
}

func (r *rig) del(name string) {
	r.t.Helper()
	r.do(func(nl *netlink.Handle) error { return nl.LinkDel(r.link(name)) })
}

func parseAddress(t testing.TB, prefix string) *netlink.Addr {
	t.Helper()
	a, err := netlink.ParseAddr(prefix)
	must(t, err)
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func (r *rig) addr(device string, prefixes ...string) {
	r.t.Helper()
	for _, p := range prefixes {
		r.do(func(nl *netlink.Handle) error { return nl.AddrAdd(r.link(device), parseAddress(r.t, p)) })
	}
}

func (r *rig) delAddr(device, prefix string) {
	r.t.Helper()
	r.do(func(nl *netlink.Handle) error { return nl.AddrDel(r.link(device), parseAddress(r.t, prefix)) })
}

// route adds a route by a device, with what else change says. "default" and "default6" are prefixes too.
func (r *rig) route(prefix, device string, change func(*netlink.Route)) {
	r.t.Helper()
	route := &netlink.Route{Dst: ipNet(prefix), Family: unix.AF_INET}
	if device != "" {
		route.LinkIndex = r.index(device)
	}
	if ones, bits := route.Dst.Mask.Size(); bits == 128 {
		route.Family = unix.AF_INET6
	} else if ones < bits && change == nil {
		route.Scope = netlink.SCOPE_LINK
	}
	if change != nil {
		change(route)
	}
	r.do(func(nl *netlink.Handle) error { return nl.RouteAdd(route) })
}

func (r *rig) delRoute(prefix, device string) {
	r.t.Helper()
	r.do(func(nl *netlink.Handle) error {
		return nl.RouteDel(&netlink.Route{Dst: ipNet(prefix), LinkIndex: r.index(device)})
	})
}

func ipNet(prefix string) *net.IPNet {
	switch prefix {
	case "default":
		prefix = all4.String()
	case "default6":
		prefix = all6.String()
	}
	p := netip.MustParsePrefix(prefix)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func via(gateway string) func(*netlink.Route) {
	return func(r *netlink.Route) { r.Gw = net.ParseIP(gateway) }
}

// seen is what a Follower has told.
type seen struct {
	*Follower
	t   testing.TB
	log *lab.Log

	mu      sync.Mutex
	calls   int
	uplinks []Uplink
	left    []Left
}

// follow runs a Follower until the test ends.
func (r *rig) follow(names Names) *seen {
	r.t.Helper()
	log, text := lab.NewLog()
	s := &seen{Follower: New(Config{Log: log, Names: names, Netns: r.l.Netns}), t: r.t, log: text}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, s.handle) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		if r.t.Failed() {
			r.t.Log(text)
		}
	})
	lab.Await(r.t, "the first result", func() bool { return s.count() > 0 })
	return s
}

func (s *seen) handle(uplinks []Uplink, left []Left) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	s.uplinks, s.left = uplinks, left
}

func (s *seen) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

func (s *seen) now() (string, []Uplink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return describe(s.uplinks, s.left), slices.Clone(s.uplinks)
}

// await waits for a result, written as in TestChooseDevices.
func (s *seen) await(what, want string) {
	s.t.Helper()
	want = unindent(want)
	var got string
	defer func() {
		if s.t.Failed() {
			s.t.Logf("%s: chose\n%s\nwant\n%s", what, got, want)
		}
	}()
	lab.Await(s.t, what, func() bool {
		got, _ = s.now()
		return got == want
	})
}

// awaitSources waits for the sources of an uplink, written as in TestChooseSources.
func (s *seen) awaitSources(what, device, want string) {
	s.t.Helper()
	want = unindent(want)
	var got string
	defer func() {
		if s.t.Failed() {
			s.t.Logf("%s: sources of %s\n%s\nwant\n%s", what, device, got, want)
		}
	}()
	lab.Await(s.t, what, func() bool {
		got = "none"
		_, uplinks := s.now()
		for _, u := range uplinks {
			if u.Name == device {
				got = describeSources(u)
			}
		}
		return got == want
	})
}
