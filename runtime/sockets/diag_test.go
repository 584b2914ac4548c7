package sockets

import (
	"bytes"
	"encoding/binary"
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

func TestADumpListsWhoIsConnectedWithAPort(t *testing.T) {
	l := lab.New(t)
	var d *diag
	must(t, l.Do(func() (err error) { d, err = openDiag(); return err }))
	defer d.Close()
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
		must(t, d.dump(family, bpf.UDP, 7001, func(s socket) {
			if !want[s.to()] || s.cookie() == 0 {
				t.Errorf("family %d: to %v, cookie %d", family, s.to(), s.cookie())
			}
			delete(want, s.to())
		}))
	}
	if len(want) != 0 {
		t.Errorf("not listed: %v", want)
	}
}

// One with another cookie may be anybody's; one without rights destroys nothing.
func TestOnlyTheVerySocketIsDestroyed(t *testing.T) {
	l := lab.New(t)
	var d *diag
	must(t, l.Do(func() (err error) { d, err = openDiag(); return err }))
	defer d.Close()
	c, err := l.DialContext(t.Context(), "udp", "127.0.0.1:7001")
	must(t, err)
	defer c.Close()
	var s socket
	must(t, d.dump(unix.AF_INET, bpf.UDP, 7001, func(found socket) { s = found }))
	other := s
	other.id[40]++
	if err := d.destroy(&other, bpf.UDP); !errors.Is(err, errMoved) {
		t.Errorf("another cookie: %v", err)
	}
	must(t, d.destroy(&s, bpf.UDP))
	if err := d.destroy(&s, bpf.UDP); !errors.Is(err, errMoved) {
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
	d, err := openDiag()
	if err != nil {
		return err
	}
	var s socket
	if err := d.dump(unix.AF_INET, bpf.UDP, 7001, func(found socket) { s = found }); err != nil {
		return err
	}
	return d.destroy(&s, bpf.UDP)
}

func TestTheMissingRightIsNamed(t *testing.T) {
	l := lab.New(t)
	exe, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	self := filepath.Join(l.Dir, "self")
	must(t, os.WriteFile(self, exe, 0o755))
	for want, caps := range map[string][]uintptr{
		"destroy a udp socket: operation not permitted: this process needs CAP_NET_ADMIN": {unix.CAP_SYS_ADMIN},
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

func TestWhatTheKernelSaysIsExplained(t *testing.T) {
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
		answer := request(unix.NLMSG_ERROR, 0, 0, 0, 0, [sizeofSockID]byte{})
		binary.NativeEndian.PutUint32(answer[unix.NLMSG_HDRLEN:], uint32(-int32(tc.errno)))
		done, err := parse(answer, nil)
		if !done {
			t.Errorf("%s: not the end", tc.name)
		}
		if got := explain(err, bpf.UDP); !errors.Is(got, tc.is) {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestSocketsInUseAreCounted(t *testing.T) {
	b, err := os.ReadFile("testdata/sockstat")
	must(t, err)
	for _, tc := range []struct {
		name string
		n    int
		ok   bool
	}{{"TCP", 4, true}, {"UDP", 0, true}, {"UDPLITE", 3, true}, {"UDP6", 0, false}, {"sockets", 0, false}} {
		if n, ok := parseInUse(b, tc.name); n != tc.n || ok != tc.ok {
			t.Errorf("%s: %d, %v", tc.name, n, ok)
		}
	}
	l := lab.New(t)
	check := func(what string, want bool) {
		t.Helper()
		must(t, l.Do(func() error {
			if inUse(bpf.UDP, false) != want || inUse(bpf.UDP, true) {
				t.Errorf("%s: UDP sockets in use: %v, want %v, and none of IPv6", what, !want, want)
			}
			return nil
		}))
	}
	check("at first", false)
	c, err := l.DialContext(t.Context(), "udp4", "127.0.0.1:7001")
	must(t, err)
	check("with one connected", true)
	must(t, c.Close())
}

func FuzzParse(f *testing.F) {
	f.Add(request(unix.SOCK_DIAG_BY_FAMILY, 0, unix.AF_INET, bpf.TCP, 1, [sizeofSockID]byte{0, 80, 1, 187}))
	f.Add(request(unix.NLMSG_ERROR, 0, 0xff, 0xff, 0, [sizeofSockID]byte{}))
	f.Add(bytes.Repeat([]byte{20, 0, 0, 0, 3, 0, 0, 0}, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		parse(b, func(s socket) { s.to(); s.cookie() })
	})
}
