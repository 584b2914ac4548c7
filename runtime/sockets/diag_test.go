package sockets

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

func TestDumpListsSocketsConnectedToAPort(t *testing.T) {
	l := lab.New(t)
	want := map[netip.AddrPort]bool{}
	for _, to := range []string{"127.0.0.1:7001", "127.0.0.2:7001", "[::1]:7001", "127.0.0.1:7002"} {
		c, err := l.DialContext(t.Context(), "udp", to)
		must(t, err)
		defer c.Close()
		if at := netip.MustParseAddrPort(to); at.Port() == 7001 {
			want[at] = true
		}
	}
	pc, err := l.ListenPacket("udp", "127.0.0.1:7001") // connected with nobody
	must(t, err)
	defer pc.Close()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		must(t, l.Do(func() error {
			return dump(family, bpf.UDP, 7001, func(s socket) {
				if !want[s.remote()] || s.cookie() == 0 {
					t.Errorf("family %d: to %v, cookie %d", family, s.remote(), s.cookie())
				}
				delete(want, s.remote())
			})
		}))
	}
	if len(want) != 0 {
		t.Errorf("not listed: %v", want)
	}
}

// One with another cookie may be anybody's; one without rights destroys nothing.
func TestDestroyTakesTheVerySocketOnly(t *testing.T) {
	l := lab.New(t)
	c, err := l.DialContext(t.Context(), "udp", "127.0.0.1:7001")
	must(t, err)
	defer c.Close()
	var s socket
	must(t, l.Do(func() error { return dump(unix.AF_INET, bpf.UDP, 7001, func(found socket) { s = found }) }))
	inLab := func(s socket) error { return l.Do(func() error { return destroy(s, bpf.UDP) }) }
	other := s
	other.id[40]++
	if err := inLab(other); !errors.Is(err, errMoved) {
		t.Errorf("another cookie: %v", err)
	}
	must(t, inLab(s))
	if err := inLab(s); !errors.Is(err, errMoved) {
		t.Errorf("the second time: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("the socket says %v", err)
	}
}

// destroyOwn is a process that destroys a socket of its own.
func destroyOwn() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("127.0.0.1:7001"))); err != nil {
		return err
	}
	var s socket
	if err := dump(unix.AF_INET, bpf.UDP, 7001, func(found socket) { s = found }); err != nil {
		return err
	}
	return destroy(s, bpf.UDP)
}

func TestDestroyNamesTheMissingCapability(t *testing.T) {
	l := lab.New(t)
	exe, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	self := filepath.Join(l.Dir, "self")
	must(t, os.WriteFile(self, exe, 0o755))
	for want, caps := range map[string][]uintptr{
		"refused: destroy a udp socket: operation not permitted: this process lacks CAP_NET_ADMIN (run the container privileged, or add it)": {unix.CAP_SYS_ADMIN},
		"<nil>": {unix.CAP_NET_ADMIN},
	} {
		cmd := l.Command(t.Context(), self)
		cmd.Env = append(os.Environ(), childEnv+"=destroy")
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		cmd.SysProcAttr.AmbientCaps = caps
		out, err := cmd.CombinedOutput()
		must(t, err)
		if got := strings.TrimSpace(string(out)); got != want {
			t.Errorf("with %v: %s, want %s", caps, got, want)
		}
	}
}

func TestExplain(t *testing.T) {
	for _, tc := range []struct {
		name  string
		errno unix.Errno
		is    error
	}{
		{"a kernel without SOCK_DESTROY", unix.EOPNOTSUPP, ErrNotSupported},
		{"no right", unix.EPERM, unix.EPERM},
		{"closed by now", unix.ENOENT, errMoved},
		{"another one by now", unix.ESTALE, errMoved},
	} {
		if got := explain(tc.errno, bpf.UDP); !errors.Is(got, tc.is) {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
