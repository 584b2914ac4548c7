package bpf

import (
	"fmt"
	"syscall"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Bypass lets TCP connections of this process past the programs, whatever the
// table says of the address that they go to. It needs no mark, which routing or a packet filter
// could take for one of its own, and no other process can use it: only who may write the map
// can. Programs of a version that does not know it translate as ever.
//
// The zero value lets nothing past.
type Bypass struct{ peers *ebpf.Map }

// NewBypass is for the programs of a table. The maps stay the caller's, who has opened them for writing.
func NewBypass(m *Maps) Bypass { return Bypass{m.Map(MapSockRevNat)} }

// Control marks a socket that does not connect yet; it fits net.Dialer. That a socket
// could not be marked is no error: it connects as any other.
func (b Bypass) Control(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = b.mark(int(fd)) })
}

func (b Bypass) mark(fd int) error {
	if b.peers == nil {
		return nil
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return fmt.Errorf("read a socket's cookie: %w", err)
	}
	at := uint32(cookie) & (b.peers.MaxEntries() - 1)
	if err := b.peers.Update(at, SockRevNat{Cookie: cookie}, ebpf.UpdateAny|ebpf.UpdateLock); err != nil {
		return fmt.Errorf("let a socket past the programs: %w", err)
	}
	return nil
}
