package natinit

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/lab"
)

// inCgroup runs commands in the lab's network namespace, in another cgroup.
type inCgroup struct {
	l   *lab.Lab
	dir string
}

func (c inCgroup) Command(ctx context.Context, name string, args ...string) *lab.Cmd {
	const join = `echo $$ >"$0"/cgroup.procs && exec "$@"`
	return c.l.Command(ctx, "/bin/sh", append([]string{"-c", join, c.dir, name}, args...)...)
}

// newCookies are those of the running kernel; noOption: by a program, also where the kernel has SO_NETNS_COOKIE.
func newCookies(t testing.TB, noOption bool, cgroups ...string) *Cookies {
	t.Helper()
	if len(cgroups) == 0 {
		cgroups = []string{lab.MainCgroup(t)}
	}
	c := NewCookies(CookiesConfig{Features: allFeatures(), NoOption: noOption, Cgroups: func() ([]string, error) { return cgroups, nil }})
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

// netnsCookie is what a network namespace is called in BPF programs.
func netnsCookie(t testing.TB, in interface{ Do(func() error) error }) (cookie uint64) {
	t.Helper()
	lab.NeedsLinux(t, 5, 8, "network namespaces have no cookies that can be told")
	cookies := newCookies(t, false)
	must(t, in.Do(func() (err error) { cookie, err = cookies.Cookie(); return err }))
	return cookie
}

func TestScopeHostServesOnlyTheHostsNamespace(t *testing.T) {
	n := newNode(t)
	pod, err := n.l.AddPod("pod", netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:1::1"))
	must(t, err)
	must(t, pod.Do(func() error { // so that what isn't served fails at once
		for _, cidr := range []string{"10.96.0.0/16", "fd00:96::/64"} {
			_, dst, _ := net.ParseCIDR(cidr)
			if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE}); err != nil {
				return err
			}
		}
		return nil
	}))
	p := goClient(t)
	for _, b := range []bpf.Balancer{{UDP: true}, {UDP: true, HostOnly: true, HostNetns: netnsCookie(t, n.l)}, {UDP: true}} {
		n.up(t, allFeatures(), b, services(0, 1, 2))
		for _, w := range waysToVIP() {
			if e := p.Run(t, n.l, w.mode, w.vip, "hello", w.options()...)[0]; e.Error != "" {
				t.Errorf("%+v: the host, %s: %+v", b, w.name, e)
			}
			e := p.Run(t, pod, w.mode, w.vip, "hello", w.options()...)[0]
			if served := e.Error == ""; served != !b.HostOnly {
				t.Errorf("%+v: a pod, %s: %+v", b, w.name, e)
			}
		}
		// What is not served isn't refused either: whatever serves the pod's network decides.
		e := p.Run(t, pod, clients.TCP, "10.96.0.1:444", "hello")[0]
		want := "connect ECONNREFUSED"
		if !allFeatures().SetRetval {
			want = "connect EPERM"
		}
		if refused := e.Error == want; refused != !b.HostOnly {
			t.Errorf("%+v: an unserved port, from a pod: %+v", b, e)
		}
	}
}

// special runs a few lines of Python in the lab and returns what they print.
func (n *node) special(t testing.TB, script string) string {
	t.Helper()
	return special(t, n.l, script)
}

// special runs a few lines of Python on a machine and returns what they print.
func special(t testing.TB, m clients.Machine, script string) string {
	t.Helper()
	cmd := m.Command(t.Context(), "python3", "-c", "import socket, errno\n"+script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}
