package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/kube/running/probe"
	"github.com/firsthop/firsthop/test/standin"
)

// usual bounds an attempt: it is for a busy machine, not for what is lost.
const usual = 5 * time.Second

// client makes the attempts of one request, one after another.
type client struct {
	r       probe.Request
	timeout time.Duration
	kept    net.Conn
	lines   *bufio.Reader
	loose   net.PacketConn
}

func newClient(r probe.Request) *client {
	c := &client{r: r, timeout: time.Duration(r.Timeout) * time.Millisecond}
	if r.Timeout == 0 {
		c.timeout = usual
	}
	return c
}

func (c *client) close() {
	if c.kept != nil {
		c.kept.Close()
	}
	if c.loose != nil {
		c.loose.Close()
	}
}

func (c *client) attempt() (standin.Reply, error) {
	switch c.r.Proto {
	case probe.TCP, probe.Connect:
		conn, err := c.dial("tcp")
		if err != nil {
			return standin.Reply{}, err
		}
		defer conn.Close()
		// With a RST: no TIME_WAIT uses up the ports.
		_ = conn.(*net.TCPConn).SetLinger(0)
		if c.r.Proto == probe.Connect {
			return standin.Reply{}, nil
		}
		return c.exchange(conn, bufio.NewReader(conn))
	case probe.UDP:
		conn, err := c.dial("udp")
		if err != nil {
			return standin.Reply{}, err
		}
		defer conn.Close()
		return c.exchange(conn, bufio.NewReader(conn))
	case probe.Kept:
		return c.attemptKept("tcp")
	case probe.UDPKept:
		return c.attemptKept("udp")
	case probe.UDPLoose:
		return c.attemptLoose()
	}
	return standin.Reply{}, fmt.Errorf("unknown protocol %q", c.r.Proto)
}

func (c *client) attemptKept(network string) (standin.Reply, error) {
	if c.kept == nil {
		conn, err := c.dial(network)
		if err != nil {
			return standin.Reply{}, err
		}
		c.kept, c.lines = conn, bufio.NewReader(conn)
	}
	reply, err := c.exchange(c.kept, c.lines)
	if err != nil {
		c.kept.Close()
		c.kept = nil
	}
	return reply, err
}

func (c *client) attemptLoose() (standin.Reply, error) {
	to, err := net.ResolveUDPAddr("udp", c.r.Target)
	if err != nil {
		return standin.Reply{}, err
	}
	if c.loose == nil {
		family := "udp6"
		if to.IP.To4() != nil {
			family = "udp4"
		}
		if c.loose, err = net.ListenPacket(family, fmt.Sprint(":", c.r.Source)); err != nil {
			return standin.Reply{}, named("bind", err)
		}
	}
	_ = c.loose.SetDeadline(time.Now().Add(c.timeout))
	if _, err := c.loose.WriteTo([]byte("x\n"), to); err != nil {
		return standin.Reply{}, named("send", err)
	}
	buf := make([]byte, 4096)
	n, from, err := c.loose.ReadFrom(buf)
	if err != nil {
		return standin.Reply{}, named("recv", err)
	}
	if from.String() != to.String() {
		return standin.Reply{}, fmt.Errorf("recv from %s", from)
	}
	return standin.ParseReply(buf[:n])
}

func (c *client) dial(network string) (net.Conn, error) {
	d := net.Dialer{Timeout: c.timeout}
	if network == "udp" && c.r.Source != 0 {
		d.LocalAddr = &net.UDPAddr{Port: int(c.r.Source)}
	}
	conn, err := d.Dial(network, c.r.Target)
	return conn, named("connect", err)
}

func (c *client) exchange(conn net.Conn, lines *bufio.Reader) (standin.Reply, error) {
	_ = conn.SetDeadline(time.Now().Add(c.timeout))
	if _, err := io.WriteString(conn, "x\n"); err != nil {
		return standin.Reply{}, named("send", err)
	}
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return standin.Reply{}, named("recv", err)
	}
	return standin.ParseReply(line)
}

// named is an error by the call that failed and the errno's name.
func named(call string, err error) error {
	if err == nil {
		return nil
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return fmt.Errorf("%s %s", call, unix.ErrnoName(errno))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%s timeout", call)
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s EOF", call)
	}
	return fmt.Errorf("%s: %w", call, err)
}
