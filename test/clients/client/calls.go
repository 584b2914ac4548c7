package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/clients"
	"github.com/firsthop/firsthop/test/standin"
)

// calls does what the standard input says, a clients.Call in each line, until that ends, and prints an Exchange of each.
func calls() error {
	c := caller{kept: map[string]*keptSock{}}
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for in.Scan() {
		var call clients.Call
		if err := json.Unmarshal(in.Bytes(), &call); err != nil {
			return fmt.Errorf("parse call %q: %w", in.Bytes(), err)
		}
		var e clients.Exchange
		if err := c.do(call, &e); err != nil {
			e.Error = err.Error()
		}
		if err := out.Encode(e); err != nil {
			return err
		}
	}
	return in.Err()
}

type caller struct {
	kept  map[string]*keptSock
	n     int // questions so far
	hoard []*keptSock
}

// keptSock is a socket that has a name.
type keptSock struct {
	*sock
	mode clients.Mode
}

func (c *caller) do(call clients.Call, e *clients.Exchange) error {
	switch call.Do {
	case clients.Open:
		s, err := newSock(call.Mode, call.Addr, time.Duration(call.Wait)*time.Millisecond)
		if err == nil {
			c.kept[call.Socket].close()
			c.kept[call.Socket] = &keptSock{s, call.Mode}
		}
		return err
	case clients.Churn:
		return churn(call)
	case clients.Hoard:
		return c.keepMany(call)
	}
	s := c.kept[call.Socket]
	if s == nil {
		return fmt.Errorf("no socket %q", call.Socket)
	}
	switch call.Do {
	case clients.Bind:
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return callError("setsockopt", err)
		}
		if err := unix.Bind(s.fd, sockaddr(call.Addr)); err != nil {
			return callError("bind", err)
		}
		return nil
	case clients.Connect:
		return or(s.connect(call.Addr), s.peer(e))
	case clients.Dissolve:
		return s.dissolve()
	case clients.Talk:
		c.n++
		return s.ask(fmt.Sprint("talk-", c.n), e)
	case clients.SendTo:
		c.n++
		return again("sendto", func() error { return unix.Sendto(s.fd, []byte(fmt.Sprint("sendto-", c.n)), 0, sockaddr(call.Addr)) })
	case clients.Receive:
		return s.receive(e)
	case clients.Close:
		s.close()
		delete(c.kept, call.Socket)
		return nil
	}
	return fmt.Errorf("unknown call %q", call.Do)
}

func (k *keptSock) close() {
	if k != nil {
		k.sock.close()
	}
}

// ask sends a line and waits for the answer to it: late ones, to former lines, are passed over.
func (k *keptSock) ask(line string, e *clients.Exchange) error {
	if err := again("send", func() error { _, err := unix.Write(k.fd, []byte(line+"\n")); return err }); err != nil {
		return err
	}
	if k.mode == clients.TCP {
		return k.readLine(e)
	}
	for {
		if err := k.receive(e); err != nil {
			return err
		}
		if r, err := standin.ParseReply([]byte(e.Reply)); err == nil && r.Data == line+"\n" {
			return k.peer(e)
		}
	}
}

// churn has many sockets come and go.
func churn(call clients.Call) error {
	for range call.Count {
		s, err := newSock(call.Mode, call.Addr, time.Second)
		if err != nil {
			return err
		}
		err = s.connect(call.Addr)
		s.close()
		if err != nil {
			return err
		}
	}
	return nil
}

// keepMany opens sockets beside those that there are, and has all say who they talk to.
func (c *caller) keepMany(call clients.Call) error {
	const some = 8 // of all, after each that comes
	for range call.Count {
		s, err := newSock(call.Mode, call.Addr, datagramTime)
		if err == nil && call.Mode == clients.UDPConnected {
			err = s.connect(call.Addr)
		}
		if err != nil {
			return err
		}
		c.hoard = append(c.hoard, &keptSock{s, call.Mode})
		for range some {
			if err := c.named(rand.IntN(len(c.hoard)), call); err != nil {
				return err
			}
		}
	}
	for i := range c.hoard {
		if err := c.named(i, call); err != nil {
			return err
		}
	}
	return nil
}

// named fails if a socket does not name the address that it asked for.
func (c *caller) named(i int, call clients.Call) error {
	var e clients.Exchange
	s := c.hoard[i]
	if s.mode == clients.UDPConnected {
		if err := s.peer(&e); err != nil || e.Peer != call.Addr.String() {
			return fmt.Errorf("socket %d of %d says that its peer is %s (%v), not %s", i, len(c.hoard), e.Peer, err, call.Addr)
		}
		return nil
	}
	s.drain()
	if err := s.exchange(s.mode, call.Addr, "hoard\n", &e); err != nil || e.From != call.Addr.String() {
		return fmt.Errorf("socket %d of %d heard of %s (%v), not of %s", i, len(c.hoard), e.From, err, call.Addr)
	}
	return nil
}
