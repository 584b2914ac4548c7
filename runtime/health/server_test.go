package health

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/runtime/services"
	"github.com/firsthop/firsthop/test/lab"
)

func hello(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]int{"hello": 1})
}

func TestServerWaitsForItsPort(t *testing.T) {
	checkLeaks(t)
	port := freePort(t)
	other, err := net.Listen("tcp", fmt.Sprint(":", port))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	log, lines := lab.NewLog()
	var tries atomic.Int32
	holder := func(port uint16) string {
		tries.Add(1)
		return Holder(port)
	}
	s := NewServer(ServerConfig{Name: "/healthz", Addr: fmt.Sprint(":", port), Handler: http.HandlerFunc(hello), Log: log, Holder: holder, Retry: time.Millisecond})
	stop := run(t, s)

	me, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%s (pid %d) has the port", strings.TrimSpace(string(me)), os.Getpid())
	lab.Await(t, "it says who has the port", func() bool { return strings.Contains(s.Status().Err, want) })
	if got, want := s.Status().Holder, strings.TrimSuffix(want, " has the port"); got != want {
		t.Errorf("the holder is %q, want %q", got, want)
	}
	lab.Await(t, "it tries again", func() bool { return tries.Load() > 3 })
	if st := s.Status(); st.Listening {
		t.Errorf("it listens where another program does: %+v", st)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	lab.Await(t, "it takes the port", func() bool { return s.Status().Listening })
	if got := s.Status().Holder; got != "" {
		t.Errorf("the holder is %q still", got)
	}
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		if a := ask(t, fmt.Sprintf("http://%s:%d/", host, port)); a.err != nil || a.code != 200 {
			t.Errorf("%s: %d, %v", host, a.code, a.err)
		}
	}
	if n := lines.Count("not listening"); n != 1 {
		t.Errorf("logged %d times for one reason", n)
	}
	stop()
	if st := s.Status(); st.Listening || st.Err != "" {
		t.Errorf("after its end: %+v", st)
	}
	if a := ask(t, fmt.Sprintf("http://127.0.0.1:%d/", port)); a.err == nil {
		t.Error("it answers after its end")
	}
}

func TestServerRetriesAnAbsentAddress(t *testing.T) {
	checkLeaks(t)
	log, lines := lab.NewLog()
	s := NewServer(ServerConfig{Name: "x", Addr: "192.0.2.1:1", Handler: http.HandlerFunc(hello), Log: log, Retry: time.Millisecond})
	stop := run(t, s)
	lab.Await(t, "it fails", func() bool { return strings.Contains(s.Status().Err, "192.0.2.1:1") })
	stop()
	if n := lines.Count("not listening"); n != 1 {
		t.Errorf("logged %d times for one reason", n)
	}
}

func TestServerEndsItsConnections(t *testing.T) {
	checkLeaks(t)
	log, _ := lab.NewLog()
	s := NewServer(ServerConfig{Name: "x", Addr: "127.0.0.1:0", Handler: http.HandlerFunc(hello), Log: log})
	stop := run(t, s)
	lab.Await(t, "it listens", func() bool { return s.Status().Listening })
	conn, err := net.Dial("tcp", s.Status().Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\n")); err != nil { // and no more
		t.Fatal(err)
	}
	stop()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the connection is still there: %v", err)
	}
}

// TestServerAnswersBesideAFlood of connections that send nothing.
func TestServerAnswersBesideAFlood(t *testing.T) {
	checkLeaks(t)
	log, _ := lab.NewLog()
	s := NewServer(ServerConfig{Name: "x", Addr: "127.0.0.1:0", Handler: http.HandlerFunc(hello), Log: log})
	run(t, s)
	lab.Await(t, "it listens", func() bool { return s.Status().Listening })
	for range 3 * connections {
		c, err := net.Dial("tcp", s.Status().Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if a := ask(t, "http://"+s.Status().Addr+"/"); a.err != nil || a.code != 200 {
		t.Errorf("%d, %v", a.code, a.err)
	}
	if open, _ := s.cfg.Budget.Status(); open > connections {
		t.Errorf("%d connections are open, want %d at most", open, connections)
	}
}

// withoutIPv6 says, in a process that a test has started for it, how its host has no IPv6.
const withoutIPv6 = "FIRSTHOP_TEST_WITHOUT_IPV6"

// What Go asks the kernel about IPv6 it asks once, so these are processes of their own, in network namespaces of their own.
func TestServerWithoutIPv6(t *testing.T) {
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
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestServerWithoutIPv6$", "-test.v", "-test.timeout=2m")
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
		log, lines := lab.NewLog()
		s := NewServer(ServerConfig{Name: "/healthz", Addr: addr, Handler: http.HandlerFunc(hello), Log: log})
		run(t, s)
		lab.Await(t, addr+": it listens", func() bool { return s.Status().Listening })
		_, port, _ := strings.Cut(s.Status().Addr[strings.LastIndex(s.Status().Addr, ":"):], ":")
		if a := ask(t, "http://127.0.0.1:"+port); a.err != nil || a.code != http.StatusOK {
			t.Errorf("%s: %d, %v", addr, a.code, a.err)
		}
		if n := lines.Count("not listening"); n != 0 || lines.Count("no IPv6") > 1 {
			t.Errorf("%s: %s", addr, lines.String())
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
		lab.Await(t, "it says so", func() bool { return r.lines.Count("no IPv6") == 1 })
	}
	r.Set(web, services.Health{})
	r.Close()
	if u := r.Unserved(); len(u) != 0 || r.lines.Count("not listening") != 0 || r.lines.Count("no IPv6") > 1 {
		t.Errorf("%v\n%s", u, r.lines.String())
	}
}

// An address that only IPv6 has is not one of IPv4.
func onlyIPv6(t *testing.T) {
	log, lines := lab.NewLog()
	s := NewServer(ServerConfig{Name: "/metrics", Addr: "[::1]:0", Handler: http.HandlerFunc(hello), Log: log, Retry: 1})
	stop := run(t, s)
	lab.Await(t, "it says why", func() bool { return lines.Count("no IPv6")+lines.Count("not listening") == 1 })
	stop()
	if st := s.Status(); st.Listening || lines.Count("no IPv6")+lines.Count("not listening") != 1 {
		t.Errorf("%+v\n%s", st, lines.String())
	}
}

// freePort4 is a port without a listener.
func freePort4(t *testing.T) uint16 {
	t.Helper()
	log, _ := lab.NewLog()
	s := NewServer(ServerConfig{Network: "tcp4", Addr: "127.0.0.1:0", Log: log})
	stop := run(t, s)
	defer stop()
	lab.Await(t, "a port", func() bool { return s.Status().Listening })
	return netip.MustParseAddrPort(s.Status().Addr).Port()
}
