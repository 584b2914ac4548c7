package health

import (
	"bytes"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/test/lab"
)

// withoutIPv6 says, in a process that a test has started for it, how its host has no IPv6.
const withoutIPv6 = "FIRSTHOP_TEST_WITHOUT_IPV6"

// What Go asks the kernel about IPv6 it asks once, so these are processes of their own, in network namespaces of their own.
func TestAHostWithoutIPv6IsServedOverIPv4(t *testing.T) {
	if how := os.Getenv(withoutIPv6); how != "" {
		removeIPv6(t, how)
		t.Run("all addresses", onlyIPv4)
		t.Run("health checks", checksOverIPv4)
		t.Run("IPv6 only", onlyIPv6)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, how := range []string{"sysctl", "kernel"} {
		t.Run(how, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAHostWithoutIPv6IsServedOverIPv4$", "-test.v", "-test.timeout=2m")
			cmd.Env = append(os.Environ(), withoutIPv6+"="+how)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
			out, err := cmd.CombinedOutput()
			if err != nil || bytes.Count(out, []byte("--- PASS")) != 4 {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func removeIPv6(t *testing.T, how string) {
	t.Helper()
	var err error
	switch how {
	case "sysctl":
		err = os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	case "kernel": // as with ipv6.disable=1, where sockets of the family can't be made
		err = lab.Refuse(lab.Refusal{Call: unix.SYS_SOCKET, First: new(uint32(unix.AF_INET6)), Errno: unix.EAFNOSUPPORT})
	}
	if err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func onlyIPv4(t *testing.T) {
	for _, addr := range []string{":0", "[::]:0"} {
		log, lines := newLog()
		s := NewServer(ServerConfig{Name: "/healthz", Addr: addr, Handler: http.HandlerFunc(hello), Log: log})
		run(t, s)
		lab.Await(t, addr+": it listens", func() bool { return s.Status().Listening })
		_, port, _ := strings.Cut(s.Status().Addr[strings.LastIndex(s.Status().Addr, ":"):], ":")
		if a := ask(t, "http://127.0.0.1:"+port); a.err != nil || a.code != http.StatusOK {
			t.Errorf("%s: %d, %v", addr, a.code, a.err)
		}
		if n := lines.count("not listening"); n != 0 || lines.count("no IPv6") > 1 {
			t.Errorf("%s: %s", addr, lines.b.String())
		}
	}
}

func checksOverIPv4(t *testing.T) {
	r := newServicesRig(t)
	port, other := freePort4(t), freePort4(t)
	r.Set(web, services.Health{Port: port, Ready4: 1, Ready6: 1, Has4: true, Has6: true})
	r.Set(shop, services.Health{Port: other, Ready4: 2, Has4: true, Has6: true})
	r.answers("127.0.0.1", port, web, http.StatusOK, 1)
	r.answers("127.0.0.1", other, shop, http.StatusOK, 2)
	if os.Getenv(withoutIPv6) == "kernel" {
		lab.Await(t, "it says so", func() bool { return r.lines.count("no IPv6") == 1 })
	}
	r.Set(web, services.Health{})
	r.Close()
	if u := r.Unserved(); len(u) != 0 || r.lines.count("not listening") != 0 || r.lines.count("no IPv6") > 1 {
		t.Errorf("%v\n%s", u, r.lines.b.String())
	}
}

// An address that only IPv6 has is not one of IPv4.
func onlyIPv6(t *testing.T) {
	log, lines := newLog()
	s := NewServer(ServerConfig{Name: "/metrics", Addr: "[::1]:0", Handler: http.HandlerFunc(hello), Log: log, Retry: 1})
	stop := run(t, s)
	lab.Await(t, "it says why", func() bool { return lines.count("no IPv6")+lines.count("not listening") == 1 })
	stop()
	if st := s.Status(); st.Listening || lines.count("no IPv6")+lines.count("not listening") != 1 {
		t.Errorf("%+v\n%s", st, lines.b.String())
	}
}

// freePort4 is a port that nobody listens on.
func freePort4(t *testing.T) uint16 {
	t.Helper()
	log, _ := newLog()
	s := NewServer(ServerConfig{Network: "tcp4", Addr: "127.0.0.1:0", Log: log})
	stop := run(t, s)
	defer stop()
	lab.Await(t, "a port", func() bool { return s.Status().Listening })
	return netip.MustParseAddrPort(s.Status().Addr).Port()
}
