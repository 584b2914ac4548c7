package proof

import (
	"net"
	"net/netip"
	"syscall"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// cookieOf reads the cookie of a socket, by which the programs remember it.
func cookieOf(raw syscall.RawConn) (cookie uint64, err error) {
	if failed := raw.Control(func(fd uintptr) {
		cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
	}); failed != nil {
		return 0, failed
	}
	return cookie, err
}

// translation looks a socket up in the programs' own memory. A socket that they
// did not translate is not there: another one may have its place.
func translation(sockets *ebpf.Map, cookie uint64) (t bpf.SockRevNat, found bool, err error) {
	at := uint32(cookie) & (sockets.MaxEntries() - 1)
	err = sockets.LookupWithFlags(at, &t, ebpf.LookupLock)
	return t, err == nil && cookie != 0 && t.Cookie == cookie, err
}

// BackendOf tells to which backend the programs led a connection; false: they
// don't remember it, as they need not have.
func BackendOf(sockets *ebpf.Map, conn net.Conn) (netip.AddrPort, bool) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return netip.AddrPort{}, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, false
	}
	cookie, err := cookieOf(raw)
	if err != nil {
		return netip.AddrPort{}, false
	}
	t, found, err := translation(sockets, cookie)
	if err != nil || !found {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(t.Backend.Addr(), t.BackendPort.Uint16()), true
}
