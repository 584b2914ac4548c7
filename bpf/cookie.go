package bpf

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ErrNotReached says that no program of a Cookies saw this process's socket:
// the process isn't in the cgroup that they are attached to, or its sockets
// aren't: before kernel commit 8520e224f547 all new sockets of a machine are
// sockets of the root once net_cls or net_prio of cgroup v1 are in use.
var ErrNotReached = errors.New("this process's sockets don't reach the program that knows their network namespace")

// Cookies tells the cookies of network namespaces where the kernel tells them
// to programs (Linux 5.7, with links of use 5.8) and not to processes (5.14): by a program of its own,
// attached to one cgroup by a link without a pin. It ends with this process at
// the latest, whatever that dies of. Safe for concurrent use, but for Close.
type Cookies struct {
	sockets *ebpf.Map
	link    link.Link
}

// OpenCookies attaches the program to the cgroup v2 directory that this process
// is in, or to one above it; other programs there run as before. It needs what
// LoadPrograms needs, and bpf_link (Linux 5.8) and bpf_get_netns_cookie (5.7).
func OpenCookies(cgroup string) (*Cookies, error) {
	spec, err := loadCookie()
	if err != nil {
		return nil, fmt.Errorf("parse embedded object: %w", err)
	}
	var objs cookieObjects
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		return nil, fmt.Errorf("load the program that knows network namespaces: %w", err)
	}
	defer objs.FhCookie.Close() // the link holds it
	dir, err := os.Open(cgroup)
	if err != nil {
		objs.FhNetns.Close()
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	// Not link.AttachCgroup: where there are no links it attaches what outlives a kill.
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: objs.FhCookie, Attach: ebpf.AttachCGroupInet4Bind})
	if err != nil {
		objs.FhNetns.Close()
		return nil, fmt.Errorf("attach the program that knows network namespaces to %s: %w", cgroup, err)
	}
	return &Cookies{sockets: objs.FhNetns, link: l}, nil
}

// Cookie is the cookie of the calling thread's network namespace, which is
// never 0. ErrNotReached: this process isn't in the cgroup.
func (c *Cookies) Cookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("read the network namespace's cookie: %w", err)
	}
	defer unix.Close(fd)
	// Fails in any case: with EPERM if the program saw it. Class E, which no device has; twin of cookie.c.
	bound := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{0xf0, 'f', 'h', 'c'}, Port: 'f'<<8 | 'h'})
	var cookie uint64
	err = c.sockets.Lookup(int32(fd), &cookie)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, fmt.Errorf("%w (bind: %v)", ErrNotReached, bound)
	}
	if err != nil {
		return 0, fmt.Errorf("read the network namespace's cookie of a socket: %w", err)
	}
	return cookie, nil
}

// Close detaches the program.
func (c *Cookies) Close() error { return errors.Join(c.link.Close(), c.sockets.Close()) }
