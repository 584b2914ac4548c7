package clients

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"testing"
)

// Call is one thing to do with a socket that a Caller keeps.
type Call struct {
	Do     Do             `json:"do"`
	Socket string         `json:"socket,omitempty"`
	Mode   Mode           `json:"mode,omitempty"`
	Addr   netip.AddrPort `json:"addr"` // a v4-mapped one is for an IPv6 socket
	// Count is how many sockets Churn and Hoard open.
	Count int `json:"count,omitempty"`
	// Wait is how many milliseconds an answer may take.
	Wait int `json:"wait,omitempty"`
}

// Do is what a Call does.
type Do string

// What a Call can do. Each but Talk, Churn and Hoard is one system call.
const (
	Open     Do = "open"     // a socket of Mode for the family of Addr, waiting for answers no longer than Wait
	Bind     Do = "bind"     // to Addr, with SO_REUSEADDR
	Connect  Do = "connect"  // to Addr; then Peer is whom the socket names
	Dissolve Do = "dissolve" // take the connection away, as connect(2) to AF_UNSPEC does
	Talk     Do = "talk"     // send a line, and receive the answer to it
	SendTo   Do = "sendto"   // a datagram to Addr
	Receive  Do = "receive"  // a datagram
	Close    Do = "close"
	Churn    Do = "churn" // open Count sockets of Mode, one after another, connect each to Addr, close it
	// Hoard opens Count sockets of Mode beside those that it has, and keeps them. Connected ones are connected to Addr, and all
	// must always name it as their peer; unconnected ones ask there, and it must be the answer's source. All are asked at the end
	// of a Hoard, and some of them after each that comes.
	Hoard Do = "hoard"
)

// Caller is a client that keeps sockets, and does with them what it is told.
type Caller struct {
	t     testing.TB
	mu    sync.Mutex // of both
	in    io.WriteCloser
	lines *bufio.Scanner
}

// StartCaller starts the client that is written in Go, of which path is the program. It ends with the test.
func StartCaller(t testing.TB, m Machine, path string) *Caller {
	t.Helper()
	cmd := m.Command(t.Context(), path, "calls")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal("start the client:", err)
	}
	t.Cleanup(func() {
		_ = in.Close() // it ends
		_ = cmd.Wait() // killed with the test's context, if not before
	})
	return &Caller{t: t, in: in, lines: bufio.NewScanner(out)}
}

// Do makes a call, and returns what came of it. A call that fails is a result.
func (c *Caller) Do(call Call) Exchange {
	c.mu.Lock()
	defer c.mu.Unlock()
	var e Exchange
	err := json.NewEncoder(c.in).Encode(call)
	if err == nil && !c.lines.Scan() {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = json.Unmarshal(c.lines.Bytes(), &e)
	}
	if err != nil {
		e.Error = fmt.Sprintf("%s: the client: %v", call.Do, err)
		c.t.Error(e.Error)
	}
	return e
}
