package clients

import (
	"bufio"
	"encoding/json"
	"io"
	"strconv"
	"testing"
	"time"
)

// Hammered is what a hammer reports when it stops.
type Hammered struct {
	Connects int64            `json:"connects"` // that succeeded
	Failures map[string]int64 `json:"failures"` // by call and error, as in "connect ECONNREFUSED"
	Servers  map[string]int64 `json:"servers"`  // with Echo: who answered
	Elapsed  time.Duration    `json:"elapsed"`  // nanoseconds, from the first connect to the last
	Slowest  time.Duration    `json:"slowest"`  // nanoseconds
}

// OnConnect is what a worker of a hammer does with a connection before it makes the next.
type OnConnect string

const (
	// AwaitClose says goodbye and waits until the server has closed, whatever it speaks: clients that only connect
	// outrun any server, whose full accept queue then drops SYNs.
	AwaitClose OnConnect = "await-close"
	// Echo sends a line to an echo backend and waits for it to come back.
	Echo OnConnect = "echo"
	// Reset closes at once, for measurements with few workers.
	Reset OnConnect = "reset"
)

// HammerConfig says how hard to hit.
type HammerConfig struct {
	Addr    string
	Workers int           // how many connect at the same time; 0 is 64
	For     time.Duration // how long; 0 is until Stop
	Do      OnConnect     // what else than connecting; "" is AwaitClose
}

// Hammer is a client program whose workers connect in a loop, each the next time as soon as it is connected.
type Hammer struct {
	t     testing.TB
	cmd   *waiter
	stdin io.Closer
	out   *bufio.Reader
}

type waiter struct{ wait func() error }

// StartHammer starts the client program at the given path (see Build) and returns when every worker has connected, or
// failed, once.
func StartHammer(t testing.TB, m Machine, path string, cfg HammerConfig) *Hammer {
	t.Helper()
	if cfg.Workers == 0 {
		cfg.Workers = 64
	}
	if cfg.Do == "" {
		cfg.Do = AwaitClose
	}
	cmd := m.Command(t.Context(), path, "-workers="+strconv.Itoa(cfg.Workers), "-for="+cfg.For.String(),
		"-do="+string(cfg.Do), "hammer", cfg.Addr)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal("start hammer:", err)
	}
	h := &Hammer{t: t, cmd: &waiter{cmd.Wait}, stdin: stdin, out: bufio.NewReader(stdout)}
	if line, err := h.out.ReadString('\n'); line != "started\n" {
		t.Fatalf("start hammer: it says %q, %v", line, err)
	}
	return h
}

// Stop ends the hammer and returns its report. With HammerConfig.For, use Wait.
func (h *Hammer) Stop() Hammered {
	h.t.Helper()
	h.stdin.Close()
	return h.Wait()
}

// Wait waits until the hammer's time is over and returns its report.
func (h *Hammer) Wait() (r Hammered) {
	h.t.Helper()
	readReport(h.t, "hammer", h.out, h.cmd, &r)
	return r
}

// First is what a client reports that connects in a loop until it is answered.
type First struct {
	Monotonic time.Duration    `json:"monotonic"` // CLOCK_MONOTONIC at the first success, nanoseconds
	Failures  map[string]int64 `json:"failures"`  // before that, by call and error
}

// FirstConnect is a client program that connects until it succeeds.
type FirstConnect struct {
	t   testing.TB
	cmd *waiter
	out *bufio.Reader
}

// StartFirstConnect starts the client program at the given path (see Build) and returns when it has failed once, so that
// what follows is what makes it succeed. For benchmarks: the same clock is in Monotonic.
func StartFirstConnect(t testing.TB, m Machine, path, addr string) *FirstConnect {
	t.Helper()
	cmd := m.Command(t.Context(), path, "first", addr)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal("start first connect:", err)
	}
	f := &FirstConnect{t: t, cmd: &waiter{cmd.Wait}, out: bufio.NewReader(stdout)}
	if line, err := f.out.ReadString('\n'); line != "started\n" {
		t.Fatalf("start first connect: it says %q, %v; want a first failure", line, err)
	}
	return f
}

// Wait returns the report after the first success.
func (f *FirstConnect) Wait() (r First) {
	f.t.Helper()
	readReport(f.t, "first connect", f.out, f.cmd, &r)
	return r
}

func readReport(t testing.TB, what string, out *bufio.Reader, cmd *waiter, report any) {
	t.Helper()
	line, err := out.ReadBytes('\n')
	if err != nil {
		t.Fatalf("wait for %s: %v", what, err)
	}
	if err := json.Unmarshal(line, report); err != nil {
		t.Fatalf("%s says %q: %v", what, line, err)
	}
	if err := cmd.wait(); err != nil {
		t.Fatalf("wait for %s: %v", what, err)
	}
}
