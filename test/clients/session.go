package clients

import (
	"bufio"
	"encoding/json"
	"io"
	"sync"
	"testing"
)

// SessionKind is a way to use sockets over a long time.
type SessionKind string

// The kinds of the client that is written in Go.
const (
	TCPEach         SessionKind = "tcp"              // a connection for each question
	TCPDissolved    SessionKind = "tcp-dissolved"    // one socket, whose connection is taken away by AF_UNSPEC after each question
	MPTCP           SessionKind = "mptcp"            // a connection for each question
	FastOpenMessage SessionKind = "tcp-msg-fastopen" // sendto with MSG_FASTOPEN instead of connect
	FastOpenConnect SessionKind = "tcp-fastopen"     // TCP_FASTOPEN_CONNECT: connect waits for the first send
	UDPOnce         SessionKind = "udp-once"         // connected once, as statsd clients and agents do
	UDPSilent       SessionKind = "udp-silent"       // the same, and never receives
	UDPDissolved    SessionKind = "udp-dissolved"    // one socket, dissolved and connected again for each question
	UDPLoose        SessionKind = "udp-loose"        // one socket, never connected, as QUIC servers and DNS forwarders do
	UDPReusePort    SessionKind = "udp-reuseport"    // connected once, beside another socket with its port
	RingUDP         SessionKind = "udp-io_uring"     // connected once, all by io_uring
	RingTCP         SessionKind = "tcp-io_uring"     // a connection for each question, all by io_uring
	GoUDP           SessionKind = "udp-go"           // net.Dial
)

// Session is a client that asks one question after the other.
type Session struct {
	Name string

	t     testing.TB
	stdin io.Closer
	ended chan struct{}

	mu   sync.Mutex
	past []Exchange
}

// StartSession starts a program that prints one Exchange as a line of JSON for each question, and stops when its
// standard input ends. What it writes to its standard error fails the test.
func StartSession(t testing.TB, m Machine, name string, argv ...string) *Session {
	t.Helper()
	cmd := m.Command(t.Context(), argv[0], argv[1:]...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	s := &Session{Name: name, t: t, stdin: stdin, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var e Exchange
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Errorf("%s printed %q: %v", name, lines.Text(), err)
				continue
			}
			s.mu.Lock()
			s.past = append(s.past, e)
			s.mu.Unlock()
		}
		said, _ := io.ReadAll(stderr)
		if err := cmd.Wait(); err != nil || len(said) > 0 {
			t.Errorf("%s: %v\n%s", name, err, said)
		}
	}()
	t.Cleanup(s.Stop)
	return s
}

// Stop ends the program, and waits for that.
func (s *Session) Stop() {
	_ = s.stdin.Close() // it may have ended by itself
	<-s.ended
}

// Past are the exchanges so far.
func (s *Session) Past() []Exchange {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.past[:len(s.past):len(s.past)]
}
