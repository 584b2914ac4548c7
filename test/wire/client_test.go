package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a client waits for what takes a millisecond: so long, as the machine may be busy.
const patience = 10 * time.Second

// ports are those that clients have used.
var ports atomic.Uint32

// fresh is a source that no client of this process has used before: the kernel may give one port to two connections to
// different frontends, which must not lead to one backend.
func fresh(to netip.AddrPort) netip.AddrPort {
	any := netip.IPv6Unspecified()
	if to.Addr().Is4() {
		any = netip.IPv4Unspecified()
	}
	return netip.AddrPortFrom(any, uint16(10000+ports.Add(1)%50000))
}

// dial connects from a machine, from an address and port.
func dial(m machine, network string, from, to netip.AddrPort) (c net.Conn, err error) {
	d := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(from), Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	}}
	if network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(from)
	}
	err = m.Do(func() error {
		c, err = d.DialContext(context.Background(), network, to.String())
		return err
	})
	if err == nil {
		err = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

// ask sends a request and gives what a server says in answer.
func ask(c net.Conn, request byte) (who netip.AddrPort, err error) {
	if _, err := c.Write([]byte{request}); err != nil {
		return who, err
	}
	var n [1]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return who, err
	}
	s := make([]byte, n[0])
	if _, err := io.ReadFull(c, s); err != nil {
		return who, err
	}
	return netip.ParseAddrPort(string(s))
}

// seen checks whom a server sees: the client itself if the server is at this node, the node with a port for masquerade else.
func (b *bench) seen(f family, k kind, client, who netip.AddrPort) error {
	if k.local() {
		if who != client {
			return fmt.Errorf("the server sees %s, want the client, %s", who, client)
		}
		return nil
	}
	if b.masquerades.Load() && who.Addr() == f.source(k) {
		return nil
	}
	if first := masqueradePorts.FirstPort; who.Addr() != f.source(k) || who.Port() < first || who.Port() >= first+masqueradePorts.Ports {
		return fmt.Errorf("the server sees %s, want %s with a port of %d to %d", who, f.source(k), first, first+masqueradePorts.Ports-1)
	}
	return nil
}

func addrPort(a net.Addr) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(a.String())
	return ap
}

// tryTCP connects, has the server say whom it sees, sends some bytes forth and back, and ends its side first.
func (b *bench) tryTCP(f family, m machine, k kind, to netip.AddrPort) error {
	c, err := dial(m, "tcp", fresh(to), to)
	if err != nil {
		return err
	}
	defer c.Close()
	who, err := ask(c, askWho)
	if err != nil {
		return err
	}
	if err := b.seen(f, k, addrPort(c.LocalAddr()), who); err != nil {
		return err
	}
	return echo(c, 50_000)
}

// echo sends bytes, ends its side, and reads until the server has done the same.
func echo(c net.Conn, n int) error {
	want := bytes.Repeat([]byte("first hop"), n/9+1)[:n]
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(append([]byte{askEcho}, want...))
		sent <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes came back, want %d, and the same", len(got), n)
	}
	return nil
}

// tryUDP sends datagrams of a size from a connected socket, and reads their answers.
func (b *bench) tryUDP(f family, m machine, k kind, to netip.AddrPort, count, size int) error {
	c, err := dial(m, "udp", fresh(to), to)
	if err != nil {
		return err
	}
	defer c.Close()
	return b.talkUDP(f, c, k, count, size)
}

// talkUDP is tryUDP from a socket.
func (b *bench) talkUDP(f family, c net.Conn, k kind, count, size int) error {
	buf := make([]byte, 1<<16)
	for i := range count {
		request := bytes.Repeat([]byte{byte(i)}, size)
		if _, err := c.Write(request); err != nil {
			return err
		}
		n, err := c.Read(buf)
		if err != nil {
			return fmt.Errorf("datagram %d: %w", i, err)
		}
		if err := b.answered(f, k, addrPort(c.LocalAddr()), request, buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// answered checks what a server said to a datagram.
func (b *bench) answered(f family, k kind, client netip.AddrPort, request, answer []byte) error {
	parts := strings.SplitN(string(answer), "|", 3)
	if len(parts) != 3 || len(answer) < len(request) {
		return fmt.Errorf("answer of %d bytes to %d: %.60q", len(answer), len(request), answer)
	}
	who, err := netip.ParseAddrPort(parts[0])
	if err != nil {
		return err
	}
	if sum := strconv.FormatUint(uint64(crc32.ChecksumIEEE(request)), 16); parts[1] != sum {
		return fmt.Errorf("the server got other bytes: their sum is %s, want %s", parts[1], sum)
	}
	return b.seen(f, k, client, who)
}
