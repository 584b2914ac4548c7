package standin

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// Reply is what an echo backend answers to each line or datagram, as one line of JSON.
type Reply struct {
	Server string         `json:"server"` // the backend's name
	Local  netip.AddrPort `json:"local"`  // where the backend was reached
	Peer   netip.AddrPort `json:"peer"`   // whom the backend sees
	Data   string         `json:"data"`   // what it was sent, without the line's end
}

// ParseReply reads a Reply.
func ParseReply(line []byte) (Reply, error) {
	var r Reply
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("parse reply %q: %w", line, err)
	}
	return r, nil
}

// Echo is a backend over TCP or UDP.
type Echo struct {
	Name string
	Addr netip.AddrPort // with the port that the kernel chose for port 0

	running sync.WaitGroup
	close   func() error

	mu     sync.Mutex // guards conns and closed
	conns  map[net.Conn]bool
	closed bool
}

// StartTCPEcho answers every line of every connection.
func StartTCPEcho(n Network, name string, addr netip.AddrPort) (*Echo, error) {
	ln, err := n.Listen("tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("start TCP backend %s: %w", name, err)
	}
	e := &Echo{Name: name, Addr: ln.Addr().(*net.TCPAddr).AddrPort(), close: ln.Close, conns: make(map[net.Conn]bool)}
	e.running.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			e.running.Go(func() { e.serve(conn) })
		}
	})
	return e, nil
}

// StartUDPEcho answers every datagram to its sender, from the address that it was sent to.
func StartUDPEcho(n Network, name string, addr netip.AddrPort) (*Echo, error) {
	pc, err := n.ListenPacket("udp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("start UDP backend %s: %w", name, err)
	}
	conn := pc.(*net.UDPConn)
	e := &Echo{Name: name, Addr: conn.LocalAddr().(*net.UDPAddr).AddrPort(), close: conn.Close}
	e.running.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			size, peer, err := conn.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // an ICMP error for an earlier reply
			}
			_, _ = conn.WriteToUDPAddrPort(e.reply(e.Addr, peer, buf[:size]), peer)
		}
	})
	return e, nil
}

// Close stops listening, closes every connection and waits until all is over.
func (e *Echo) Close() {
	_ = e.close()
	e.mu.Lock()
	e.closed = true
	for conn := range e.conns {
		conn.Close()
	}
	e.mu.Unlock()
	e.running.Wait()
}

// track remembers a connection for Close; it says no when that has come and gone.
func (e *Echo) track(conn net.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.conns[conn] = true
	return true
}

func (e *Echo) untrack(conn net.Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, conn)
}

func (e *Echo) serve(conn net.Conn) {
	defer conn.Close()
	if !e.track(conn) {
		return
	}
	defer e.untrack(conn)
	local := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	peer := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if _, err := conn.Write(e.reply(local, peer, lines.Bytes())); err != nil {
			return
		}
	}
}

func (e *Echo) reply(local, peer netip.AddrPort, data []byte) []byte {
	unmap := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
	line, err := json.Marshal(Reply{Server: e.Name, Local: unmap(local), Peer: unmap(peer), Data: string(data)})
	if err != nil {
		panic(err) // strings and addresses only
	}
	return append(line, '\n')
}
