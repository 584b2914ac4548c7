package wire

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"
)

// What a TCP client asks of a server, as its first byte.
const (
	askWho    = 'w' // whom do you see?
	askEcho   = 'e' // send back what I send, until I have ended
	askBulk   = 'b' // send as many bytes as 4 further ones say, and end
	askCheck  = 'c' // read until I have ended, and say how many bytes that were
	askReset  = 'r' // reset the connection
	askGoodby = 'g' // end the connection, and wait for my end
)

// servers are what listens behind Services, until the test ends.
type servers struct {
	wg     sync.WaitGroup
	mu     sync.Mutex
	closed bool
	open   map[io.Closer]bool
}

func newServers(t testing.TB) *servers {
	s := &servers{open: map[io.Closer]bool{}}
	t.Cleanup(s.close)
	return s
}

// keep closes c when the test ends; false: it has ended.
func (s *servers) keep(c io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return false
	}
	s.open[c] = true
	return true
}

func (s *servers) drop(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
	c.Close()
}

func (s *servers) close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.open {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// serve has servers of both protocols at the backends of all kinds.
func (b *bench) serve(t testing.TB) *servers {
	t.Helper()
	s := newServers(t)
	for _, f := range families {
		for _, k := range kinds {
			s.tcp(t, b.at(k), f.backend(k))
			s.udp(t, b.at(k), f.backend(k))
		}
	}
	return s
}

func (s *servers) tcp(t testing.TB, m machine, at netip.AddrPort) {
	t.Helper()
	ln, err := m.Listen("tcp", at.String())
	must(t, err)
	s.keep(ln)
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if s.keep(c) {
				s.wg.Go(func() {
					defer s.drop(c)
					answerTCP(c.(*net.TCPConn))
				})
			}
		}
	})
}

func answerTCP(c *net.TCPConn) {
	var ask [1]byte
	for {
		if _, err := io.ReadFull(c, ask[:]); err != nil {
			return
		}
		switch ask[0] {
		case askWho:
			who := c.RemoteAddr().String()
			c.Write(append([]byte{byte(len(who))}, who...))
		case askEcho:
			io.Copy(c, c)
			return
		case askBulk:
			var size [4]byte
			io.ReadFull(c, size[:])
			sendBulk(c, int(binary.BigEndian.Uint32(size[:])))
			return
		case askCheck:
			n, _ := io.Copy(io.Discard, c)
			c.Write([]byte(strconv.FormatInt(n, 10)))
			return
		case askReset:
			c.SetLinger(0)
			return
		case askGoodby:
			c.CloseWrite()
			io.Copy(io.Discard, c)
			return
		}
	}
}

// sendBulk sends n bytes.
func sendBulk(c net.Conn, n int) error {
	for chunk := make([]byte, 1<<18); n > 0; {
		w, err := c.Write(chunk[:min(n, len(chunk))])
		if err != nil {
			return err
		}
		n -= w
	}
	return nil
}

// udp answers each datagram by whom it sees and a checksum of what came, and then by as many bytes.
func (s *servers) udp(t testing.TB, m machine, at netip.AddrPort) {
	t.Helper()
	pc, err := m.ListenPacket("udp", at.String())
	must(t, err)
	s.keep(pc)
	s.wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := pc.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil { // an ICMP error is none of this socket's, which is not connected
				pc.WriteTo(answerUDP(buf[:n], from), from)
			}
		}
	})
}

// longAnswer begins a datagram that asks for a long one.
const longAnswer = 0xff

// askLong is a datagram whose answer has at least n bytes.
func askLong(n uint16) []byte { return binary.BigEndian.AppendUint16([]byte{longAnswer}, n) }

// answerUDP is "address|checksum|" and the request itself, at a length of the request's or what is needed.
func answerUDP(request []byte, from net.Addr) []byte {
	answer := from.String() + "|" + strconv.FormatUint(uint64(crc32.ChecksumIEEE(request)), 16) + "|"
	if len(request) == 3 && request[0] == longAnswer {
		return append([]byte(answer), make([]byte, binary.BigEndian.Uint16(request[1:]))...)
	}
	if rest := len(request) - len(answer); rest > 0 {
		answer += string(request[:rest])
	}
	return []byte(answer)
}
