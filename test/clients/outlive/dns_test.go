package outlive

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// dns answers every question with its own name as TXT, or its address as A. Where a name begins with "large", the
// answer has more than three kilobytes: it is truncated for who takes less in a datagram, and then asks by TCP.
type dns struct {
	server string
	ip     netip.Addr
}

const plainSize = 512 // what a client without EDNS takes in a datagram

func (d dns) datagrams(pc net.PacketConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer := d.answer(buf[:n], true); answer != nil {
			_, _ = pc.WriteTo(answer, from)
		}
	}
}

func (d dns) stream(conn net.Conn) {
	defer conn.Close()
	for {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		question := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, question); err != nil {
			return
		}
		answer := d.answer(question, false)
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// answer is nil for what is no question.
func (d dns) answer(question []byte, datagram bool) []byte {
	var q dnsmessage.Message
	if q.Unpack(question) != nil || len(q.Questions) != 1 {
		return nil
	}
	room := plainSize
	for _, r := range q.Additionals {
		if r.Header.Type == dnsmessage.TypeOPT {
			room = int(r.Header.Class)
		}
	}
	a := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, RecursionDesired: q.RecursionDesired, RecursionAvailable: true}, Questions: q.Questions}
	head := dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 1}
	switch q.Questions[0].Type {
	case dnsmessage.TypeA:
		a.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: d.ip.As4()}}}
	case dnsmessage.TypeTXT:
		text := []string{d.server}
		if strings.HasPrefix(head.Name.String(), "large") {
			for range 13 {
				text = append(text, strings.Repeat("x", 250))
			}
		}
		a.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.TXTResource{TXT: text}}}
	}
	out, err := a.Pack()
	if err == nil && datagram && len(out) > room {
		a.Truncated, a.Answers = true, nil
		out, err = a.Pack()
	}
	if err != nil {
		return nil
	}
	return out
}
