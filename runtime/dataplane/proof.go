package dataplane

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// proofTime is for one connection: it counts when it leaves, whoever answers.
const proofTime = time.Second

// proveOne connects to the API service for real, and looks whether the programs
// remember that very socket. Attached is not effective: a program at another
// cgroup, or one of others before ours, would not be seen otherwise.
func (d *Dataplane) proveOne(ctx context.Context, vip netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, proofTime)
	defer cancel()
	var cookie uint64
	var cookieErr error
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			cookie, cookieErr = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
		})
	}}
	conn, err := dialer.DialContext(ctx, "tcp", vip.String())
	if err == nil {
		conn.Close()
	}
	if cookieErr != nil {
		return fmt.Errorf("read a socket's cookie: %w", cookieErr)
	}
	peer, lookErr := d.remembered(cookie)
	if lookErr != nil {
		return fmt.Errorf("read what the programs remember: %w", lookErr)
	}
	if cookie == 0 || peer.Cookie != cookie {
		return fmt.Errorf("a connection to %s was not translated (it ended with: %v): is this process below %s? `firsthop doctor` says more", vip, err, d.CgroupPath())
	}
	return nil
}

// CgroupPath is the cgroup's path on the host.
func (d *Dataplane) CgroupPath() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cgroup.HostPath
}

// remembered is what the programs remember of a socket, or of another one that
// has its place.
func (d *Dataplane) remembered(cookie uint64) (peer bpf.SockRevNat, err error) {
	d.mu.Lock()
	peers := d.maps.Map(bpf.MapSockRevNat)
	d.mu.Unlock()
	err = peers.LookupWithFlags(uint32(cookie)&(peers.MaxEntries()-1), &peer, ebpf.LookupLock)
	return peer, err
}

// BackendOf tells to which backend the programs led a connection; not ok: they
// don't remember it, as they need not have.
func (d *Dataplane) BackendOf(conn net.Conn) (netip.AddrPort, bool) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return netip.AddrPort{}, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, false
	}
	var cookie uint64
	var cookieErr error
	if err := raw.Control(func(fd uintptr) {
		cookie, cookieErr = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
	}); err != nil || cookieErr != nil || cookie == 0 {
		return netip.AddrPort{}, false
	}
	peer, err := d.remembered(cookie)
	if err != nil || peer.Cookie != cookie {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(peer.Backend.Addr(), peer.BackendPort.Uint16()), true
}

// served are the addresses of the API service that the table has.
func (d *Dataplane) served(vips []netip.AddrPort) ([]netip.AddrPort, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []netip.AddrPort
	for _, v := range vips {
		var fe bpf.Frontend
		if err := d.maps.Map(bpf.MapFrontend).Lookup(bpf.FrontendKeyOf(v, bpf.TCP), &fe); err == nil {
			out = append(out, v)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the table has no frontend for the API service (%v)", vips)
	}
	return out, nil
}

// Prove proves each address of the API service; nil: all are served.
func (d *Dataplane) Prove(ctx context.Context, vips []netip.AddrPort) error {
	if d.balancer.Off {
		return nil
	}
	served, err := d.served(vips)
	if err != nil {
		return err
	}
	for _, v := range served {
		if err := d.proveOne(ctx, v); err != nil {
			return err
		}
	}
	return nil
}
