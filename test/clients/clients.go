// Package clients runs small programs that connect the way that applications do, inside a lab, and reads what they
// report: did it work, who does the application believe it talks to, and who answered.
//
// The same exchange is written twice, in Go with bare system calls (test/clients/client) and in Python, so that a test
// sees more than one runtime's idea of a socket. Nc and Curl add programs that people use by hand.
package clients

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/standin"
)

// Machine is where a client runs: a lab.Lab or a lab.Pod.
type Machine interface {
	Command(ctx context.Context, name string, args ...string) *lab.Cmd
}

// Exchange is what a client reports of one attempt to send a line and get it back.
type Exchange struct {
	Peer  string `json:"peer,omitempty"`  // getpeername after connect; empty for an unconnected socket
	From  string `json:"from,omitempty"`  // UDP: whom recvfrom names as the sender of the reply
	Reply string `json:"reply,omitempty"` // what came back, as sent
	Error string `json:"error,omitempty"` // the failed call and the error's name, as in "connect ECONNREFUSED"
}

// Server returns who answered, if it was an echo backend of package standin.
func (e Exchange) Server() string {
	r, err := standin.ParseReply([]byte(e.Reply))
	if err != nil {
		return ""
	}
	return r.Server
}

// Mode is the kind of socket that a client uses.
type Mode string

// The modes. UDPUnconnected sends and receives with sendto and recvfrom on one socket that is never connected.
const (
	TCP            Mode = "tcp"
	UDPConnected   Mode = "udp-connected"
	UDPUnconnected Mode = "udp-unconnected"
)

// Option is a flag of the client programs.
type Option string

// Mapped makes the client use an IPv6 socket and the v4-mapped form of an IPv4 address, as Java and many servers do.
const Mapped Option = "-mapped"

// Count makes a client repeat its exchange: with a new socket each for TCP and UDPConnected, with one for all for
// UDPUnconnected.
func Count(n int) Option { return Option(fmt.Sprintf("-count=%d", n)) }

// Program is a client program that prints one Exchange as a line of JSON for each attempt.
type Program struct {
	Name string
	argv []string
}

//go:embed client.py
var python string

// Go builds the client that is written in Go.
func Go(t testing.TB) Program { return Program{"Go", []string{Build(t)}} }

// Python is the client that is written in Python.
func Python(t testing.TB) Program {
	return Program{"Python", []string{mustFind(t, "python3"), "-c", python}}
}

// Programs returns all clients.
func Programs(t testing.TB) []Program { return []Program{Go(t), Python(t)} }

// Build compiles test/clients/client, statically, and returns its path.
func Build(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "client")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, "github.com/firsthop/firsthop/test/clients/client")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the client: %v\n%s", err, out)
	}
	return path
}

// Run makes a program send a line to an address, and returns its reports. It fails the test only when the program
// itself does not work: an attempt that fails is a result.
func (p Program) Run(t testing.TB, m Machine, mode Mode, addr, line string, opts ...Option) []Exchange {
	t.Helper()
	args := p.argv[1:]
	for _, o := range opts {
		args = append(args[:len(args):len(args)], string(o))
	}
	cmd := m.Command(t.Context(), p.argv[0], append(args[:len(args):len(args)], string(mode), addr, line)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run the %s client: %v\n%s%s", p.Name, err, out, stderr(err))
	}
	var exchanges []Exchange
	for text := range strings.Lines(string(out)) {
		var e Exchange
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			t.Fatalf("the %s client printed %q: %v", p.Name, text, err)
		}
		exchanges = append(exchanges, e)
	}
	return exchanges
}

// Nc sends a line with ncat, over TCP or, if udp, over UDP, and returns the first line that comes back.
func Nc(t testing.TB, m Machine, udp bool, host, port, line string) (string, error) {
	t.Helper()
	args := []string{host, port}
	if udp {
		args = append([]string{"-u"}, args...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	cmd := m.Command(ctx, mustFind(t, "ncat"), args...)
	var errText bytes.Buffer
	cmd.Stderr = &errText
	// The input stays open until the answer is there: at its end, ncat ends too.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal("start ncat:", err)
	}
	_, _ = io.WriteString(stdin, line+"\n") // a refused connection has closed it already
	got, readErr := bufio.NewReader(stdout).ReadString('\n')
	cancel()
	_ = cmd.Wait()
	if readErr != nil {
		return "", fmt.Errorf("ncat: %v: %s", readErr, errText.String())
	}
	return strings.TrimSuffix(got, "\n"), nil
}

// Curl gets a URL, with a CA certificate in a file, and returns the body.
func Curl(t testing.TB, m Machine, caFile, url string) (string, error) {
	t.Helper()
	cmd := m.Command(t.Context(), mustFind(t, "curl"), "--silent", "--show-error", "--fail", "--max-time", "5",
		"--noproxy", "*", "--cacert", caFile, url)
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("curl: %w: %s", err, stderr(err))
	}
	return string(out), nil
}

func mustFind(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: make setup installs it", err)
	}
	return path
}

func stderr(err error) string {
	if exit, ok := err.(*exec.ExitError); ok {
		return string(exit.Stderr)
	}
	return ""
}
