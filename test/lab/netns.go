package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/ns"
)

// netnsDir is where `ip netns` looks for names.
const netnsDir = "/run/netns"

func netnsPath(name string) string { return filepath.Join(netnsDir, name) }

// createNetns makes a named network namespace with its loopback up, and a netlink handle that works in it.
func createNetns(name string) (handle netns.NsHandle, nl *netlink.Handle, err error) {
	err = ns.Do(func() error {
		// NewNamed leaves the thread in the new namespace; the thread ends with this function.
		handle, err = netns.NewNamed(name)
		if err != nil {
			return fmt.Errorf("create network namespace %s: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return netns.None(), nil, err
	}
	// Only the family that is used: not every kernel has the others.
	nl, err = netlink.NewHandleAt(handle, unix.NETLINK_ROUTE)
	if err != nil {
		return handle, nil, fmt.Errorf("open netlink in %s: %w", name, err)
	}
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return handle, nl, fmt.Errorf("find lo in %s: %w", name, err)
	}
	if err := nl.LinkSetUp(lo); err != nil {
		return handle, nl, fmt.Errorf("set lo up in %s: %w", name, err)
	}
	return handle, nl, nil
}

// deleteNetns removes the name; the namespace goes with its last process and socket. An absent name is no error.
func deleteNetns(name string) error {
	path := netnsPath(name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// configureNetns sets what tests need: both families, and room for many short connections from one address.
func (l *Lab) configureNetns() error {
	for _, s := range [][2]string{
		// Some machines switch IPv6 off for new interfaces.
		{"net.ipv6.conf.all.disable_ipv6", "0"},
		{"net.ipv6.conf.default.disable_ipv6", "0"},
		{"net.ipv6.conf.lo.disable_ipv6", "0"},
		// 64 clients in a tight loop would use up the ephemeral ports of one address within two seconds.
		{"net.ipv4.ip_local_port_range", "1024 65535"},
		{"net.ipv4.tcp_tw_reuse", "1"},
	} {
		if err := l.Sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// Sysctl sets a sysctl inside the lab's network namespace. It is named with dots, or, where a device's name has one, with
// slashes.
func (l *Lab) Sysctl(name, value string) error { return sysctlIn(l.ns, name, value) }

func sysctlIn(ns netns.NsHandle, name, value string) error {
	if !strings.Contains(name, "/") {
		name = strings.ReplaceAll(name, ".", "/")
	}
	path := filepath.Join("/proc/sys", name)
	return doIn(ns, func() error { return os.WriteFile(path, []byte(value), 0) })
}

// space is a network namespace.
type space struct{ ns netns.NsHandle }

// Do runs fn on the calling goroutine while its thread is in the network namespace. Sockets that fn makes stay in the
// namespace for good, so listeners and connections can be used outside of Do.
//
// Goroutines that fn starts are NOT in the namespace. Go's own code starts some: a dial to a host name, and every dial
// of an http.Transport; give the latter DialContext. fn must not wait for other calls of Do on the same goroutine.
func (s space) Do(fn func() error) error { return doIn(s.ns, fn) }

// Listen is net.Listen inside the network namespace.
func (s space) Listen(network, addr string) (ln net.Listener, err error) {
	err = s.Do(func() error {
		ln, err = net.Listen(network, addr)
		return err
	})
	return ln, err
}

// ListenPacket is net.ListenPacket inside the network namespace.
func (s space) ListenPacket(network, addr string) (pc net.PacketConn, err error) {
	err = s.Do(func() error {
		pc, err = net.ListenPacket(network, addr)
		return err
	})
	return pc, err
}

// DialContext dials an IP address inside the network namespace but outside of the cgroup: such a connection is never
// translated. It has the shape of http.Transport.DialContext.
func (s space) DialContext(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = s.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// doIn runs fn on the calling goroutine in another network namespace. If the way back fails, the thread stays locked
// and dies with its goroutine: no other goroutine ever finds itself in the wrong namespace.
func doIn(ns netns.NsHandle, fn func() error) (err error) {
	runtime.LockOSThread()
	former, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the thread's network namespace: %w", err)
	}
	defer former.Close()
	if err := netns.Set(ns); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	// Deferred, so that a panic or t.FailNow in fn brings the thread back too.
	defer func() {
		if backErr := netns.Set(former); backErr != nil {
			err = errors.Join(err, fmt.Errorf("leave network namespace: %w", backErr))
			return
		}
		runtime.UnlockOSThread()
	}()
	return fn()
}
