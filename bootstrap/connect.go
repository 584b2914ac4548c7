package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit/apiserver"
)

// ConnectCommand is the hidden command by which the program runs itself as the
// child that connects from inside a cgroup.
const ConnectCommand = "__connect"

// connectRequest is one question to the connecting process.
type connectRequest struct {
	Addr    netip.AddrPort `json:"addr"`
	Ready   bool           `json:"ready"` // ask for /readyz too
	Timeout time.Duration  `json:"timeout"`
}

// connectAnswer is what became of one connection.
type connectAnswer struct {
	Cookie   uint64 `json:"cookie"` // of the socket; the balancer remembers it
	Answered bool   `json:"answered"`
	Ready    bool   `json:"ready"`
	Error    string `json:"error,omitempty"`
}

// connector connects as a process of the attached cgroup would.
type connector interface {
	connect(ctx context.Context, req connectRequest) (connectAnswer, error)
	Close() error
}

// newConnector gives a connector for a cgroup: this process itself, if it is
// inside, else a child that is put there.
// Unless into, the child is moved there after its start.
func newConnector(ctx context.Context, cgroup, binary string, into bool) (connector, error) {
	if in, sure, err := mounts.SelfIn(cgroup); err == nil && in && sure {
		return inProcess{}, nil
	}
	return startChild(ctx, cgroup, binary, into)
}

// pendingConnector is a connector that is made while other steps run: to start
// a child takes as long as to load the programs.
type pendingConnector struct {
	done chan struct{}
	conn connector
	err  error
}

func prepareConnector(ctx context.Context, cgroup, binary string, into bool) *pendingConnector {
	p := &pendingConnector{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.conn, p.err = newConnector(ctx, cgroup, binary, into)
	}()
	return p
}

// wait gives the connector, or why there is none.
func (p *pendingConnector) wait() (connector, error) {
	<-p.done
	return p.conn, p.err
}

// Close ends the connector, if one was made.
func (p *pendingConnector) Close() error {
	conn, err := p.wait()
	if err != nil {
		return nil // whoever needed it has said so
	}
	return conn.Close()
}

type inProcess struct{}

func (inProcess) connect(ctx context.Context, req connectRequest) (connectAnswer, error) {
	return connectOnce(ctx, req), nil
}

func (inProcess) Close() error { return nil }

// connectOnce makes one real connection and says what its socket saw.
func connectOnce(ctx context.Context, req connectRequest) connectAnswer {
	var ans connectAnswer
	var failed error
	d := net.Dialer{KeepAlive: -1, ControlContext: func(_ context.Context, _, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			ans.Cookie, failed = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
		})
	}}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, address)
		ans.Answered = ans.Answered || err == nil
		return c, err
	}
	cfg := apiserver.ProbeConfig{Strength: apiserver.TCP, Timeout: req.Timeout, Dial: dial}
	if req.Ready {
		cfg.Strength = apiserver.Ready
	}
	r := apiserver.Probe(ctx, []apiserver.Endpoint{{Addr: req.Addr}}, cfg)[0]
	ans.Ready = req.Ready && r.State == apiserver.Live
	if err := errors.Join(r.Err, failed); err != nil {
		ans.Error = err.Error()
	}
	return ans
}

// RunConnectChild is the child's side: it answers requests, one JSON text a
// line, until its input ends.
func RunConnectChild(in io.Reader, out io.Writer) error {
	dec, enc := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var req connectRequest
		if err := dec.Decode(&req); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		if err := enc.Encode(connectOnce(context.Background(), req)); err != nil {
			return fmt.Errorf("write answer: %w", err)
		}
	}
}

// child is a process of ours inside the cgroup.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *json.Encoder
	dec *json.Decoder
}

// startChild starts the child inside the cgroup (clone3 with
// CLONE_INTO_CGROUP, Linux 5.7), or moves it there before its first request.
func startChild(ctx context.Context, cgroup, binary string, into bool) (*child, error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	if into {
		if c, err := spawn(ctx, binary, &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}); err == nil {
			return c, nil
		}
	}
	c, err := spawn(ctx, binary, nil)
	if err != nil {
		return nil, fmt.Errorf("start the child that connects: %w", err)
	}
	procs := filepath.Join(cgroup, "cgroup.procs")
	if err := os.WriteFile(procs, []byte(strconv.Itoa(c.cmd.Process.Pid)), 0); err != nil {
		c.Close()
		return nil, fmt.Errorf("put the child that connects into %s: %w: a cgroup with controllers enabled for its children takes no processes, give a leaf", cgroup, err)
	}
	return c, nil
}

func spawn(ctx context.Context, binary string, attr *syscall.SysProcAttr) (*child, error) {
	cmd := exec.CommandContext(ctx, binary, ConnectCommand)
	cmd.SysProcAttr = attr
	cmd.Env = []string{}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &child{cmd: cmd, in: in, enc: json.NewEncoder(in), dec: json.NewDecoder(out)}, nil
}

func (c *child) connect(_ context.Context, req connectRequest) (connectAnswer, error) {
	var ans connectAnswer
	if err := c.enc.Encode(req); err != nil {
		return ans, fmt.Errorf("ask the child that connects: %w", err)
	}
	if err := c.dec.Decode(&ans); err != nil {
		return ans, fmt.Errorf("hear from the child that connects: %w", err)
	}
	return ans, nil
}

func (c *child) Close() error {
	c.in.Close()
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("end the child that connects: %w", err)
	}
	return nil
}
