package sockdiag

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/test/lab"
)

const childEnv = "FIRSTHOP_SOCKDIAG_CHILD"

// The test binary is also a process that ends a socket of its own.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(lab.RunMain(m))
	}
	fmt.Println(destroyOwn())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func addrPorts(ss ...string) (list []netip.AddrPort) {
	for _, s := range ss {
		list = append(list, netip.MustParseAddrPort(s))
	}
	return list
}

// sockaddr is an address for a socket of a family: IPv4 is v4-mapped for AF_INET6.
func sockaddr(family int, at netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
}

// inDiag lends a diagnostics socket of the calling thread's network namespace.
func inDiag(do func(*Conn) error) error {
	d, err := Open()
	if err != nil {
		return err
	}
	defer d.Close()
	return do(d)
}

// toPort7001 is the socket of the calling thread's network namespace that is connected to that port.
func toPort7001() (s Socket, err error) {
	err = List(bpf.UDP, Connected(bpf.UDP), ConnectedTo(addrPorts("127.0.0.1:7001")), func(found *Socket) { s = *found })
	return s, err
}

// The kernel lists those that are connected to one of several addresses, in the v4-mapped form too, or all that are
// connected.
func TestListHasConnectedSockets(t *testing.T) {
	l := lab.New(t)
	all := addrPorts("127.0.0.1:7001", "127.0.0.2:7001", "[::1]:7001", "127.0.0.1:7002", "[::1]:7002")
	must(t, l.Do(func() error {
		for i, to := range append(all, all[0]) {
			family := unix.AF_INET6
			if to.Addr().Is4() && i < len(all) {
				family = unix.AF_INET
			}
			fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			must(t, err)
			t.Cleanup(func() { unix.Close(fd) })
			must(t, unix.Connect(fd, sockaddr(family, to)))
		}
		return nil
	}))
	pc, err := l.ListenPacket("udp", "127.0.0.1:7001") // connected with nobody
	must(t, err)
	defer pc.Close()
	for _, list := range [][]netip.AddrPort{nil, all[:1], all[1:3], all[2:], addrPorts("127.0.0.3:7001", "[::2]:7001"), all} {
		filter, want := ConnectedTo(list), slices.Clone(list)
		if list == nil {
			filter, want = nil, slices.Clone(all)
		}
		if slices.Contains(want, all[0]) {
			want = append(want, all[0])
		}
		want = slices.DeleteFunc(want, func(a netip.AddrPort) bool { return !slices.Contains(all, a) })
		var got []netip.AddrPort
		must(t, l.Do(func() error {
			return List(bpf.UDP, Connected(bpf.UDP), filter, func(s *Socket) {
				if s.Cookie() == 0 || s.Inode == 0 {
					t.Errorf("to %v: cookie %d, inode %d", s.Remote(), s.Cookie(), s.Inode)
				}
				got = append(got, s.Remote())
			})
		}))
		slices.SortFunc(got, netip.AddrPort.Compare)
		slices.SortFunc(want, netip.AddrPort.Compare)
		if !slices.Equal(got, want) {
			t.Errorf("connected to one of %v: %v, want %v", list, got, want)
		}
	}
}

// One with another cookie may be anybody's; one without rights destroys nothing.
func TestDestroyTakesTheVerySocketOnly(t *testing.T) {
	l := lab.New(t)
	c, err := l.DialContext(t.Context(), "udp", "127.0.0.1:7001")
	must(t, err)
	defer c.Close()
	var s Socket
	must(t, l.Do(func() error { s, err = toPort7001(); return err }))
	inLab := func(s Socket) error {
		return l.Do(func() error { return inDiag(func(d *Conn) error { return d.Destroy(&s, bpf.UDP) }) })
	}
	other := s
	other.id[40]++
	if err := inLab(other); !errors.Is(err, ErrMoved) {
		t.Errorf("another cookie: %v", err)
	}
	must(t, inLab(s))
	if err := inLab(s); !errors.Is(err, ErrMoved) {
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
	s, err := toPort7001()
	if err != nil {
		return err
	}
	return inDiag(func(d *Conn) error { return d.Destroy(&s, bpf.UDP) })
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
		cmd.Env = append(os.Environ(), childEnv+"=1")
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		cmd.SysProcAttr.AmbientCaps = caps
		out, err := cmd.CombinedOutput()
		must(t, err)
		if got := strings.TrimSpace(string(out)); got != want {
			t.Errorf("with %v: %s, want %s", caps, got, want)
		}
	}
}

// The kernel is asked for one socket: of either family, in the v4-mapped form too, and of several with one local port.
func TestHasAsksForOneSocket(t *testing.T) {
	l := lab.New(t)
	must(t, l.Do(func() error {
		for _, tc := range []struct {
			family         int
			to, other, via string
		}{
			{unix.AF_INET, "127.0.0.1:7001", "127.0.0.2:7001", ""},
			{unix.AF_INET6, "[::1]:7001", "[::1]:7002", ""},
			{unix.AF_INET6, "127.0.0.1:7001", "127.0.0.2:7001", ""},
			{unix.AF_INET, "127.0.0.1:7001", "127.0.0.1:7003", "127.0.0.1:5001"},
		} {
			fd, err := unix.Socket(tc.family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			must(t, err)
			defer unix.Close(fd)
			if tc.via != "" {
				must(t, unix.Bind(fd, sockaddr(tc.family, netip.MustParseAddrPort(tc.via))))
			}
			to, other := netip.MustParseAddrPort(tc.to), netip.MustParseAddrPort(tc.other)
			must(t, unix.Connect(fd, sockaddr(tc.family, to)))
			cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
			must(t, err)
			var s Socket
			must(t, List(bpf.UDP, Connected(bpf.UDP), nil, func(found *Socket) {
				if found.Cookie() == cookie {
					s = *found
				}
			}))
			must(t, inDiag(func(d *Conn) error {
				if s.Remote() != to {
					t.Errorf("%v: listed as connected to %v", to, s.Remote())
				}
				for remote, want := range map[netip.AddrPort]bool{to: true, other: false} {
					asked := s.To(remote)
					if has, err := d.Has(&asked); err != nil || has != want {
						t.Errorf("family %d, connected to %v: it is at %v: %v, %v", tc.family, to, remote, has, err)
					}
				}
				unknown := s
				unknown.id[40] ^= 0xff
				if has, err := d.Has(&unknown); err != nil || has {
					t.Errorf("another cookie: %v, %v", has, err)
				}
				must(t, unix.Connect(fd, sockaddr(tc.family, other)))
				if has, err := d.Has(&s); err != nil || has {
					t.Errorf("family %d: after it went elsewhere: %v, %v", tc.family, has, err)
				}
				return nil
			}))
		}
		return nil
	}))
}

func TestExplain(t *testing.T) {
	for _, tc := range []struct {
		name  string
		errno unix.Errno
		is    error
	}{
		{"a kernel without SOCK_DESTROY", unix.EOPNOTSUPP, ErrNotSupported},
		{"no right", unix.EPERM, unix.EPERM},
		{"closed by now", unix.ENOENT, ErrMoved},
		{"another one by now", unix.ESTALE, ErrMoved},
	} {
		if got := explain(tc.errno, bpf.UDP); !errors.Is(got, tc.is) {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
