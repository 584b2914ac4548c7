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
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
)

// ConnectCommand is the hidden command by which the program runs itself as the
// child that connects from inside a cgroup.
const ConnectCommand = "__connect"

// connectRequest is one question to the connecting process.
type connectRequest struct {
	ID   uint64         `json:"id"`
	Addr netip.AddrPort `json:"addr"`
	// TLS asks for a handshake, verified with Trust, and for /readyz.
	TLS     bool             `json:"tls,omitempty"`
	Trust   *apiserver.Trust `json:"trust,omitempty"`
	Timeout time.Duration    `json:"timeout"`
}

// connectAnswer is what became of one connection.
type connectAnswer struct {
	ID       uint64 `json:"id"`
	Cookie   uint64 `json:"cookie"` // of the socket; the balancer remembers it
	Answered bool   `json:"answered"`
	Verified bool   `json:"verified"` // its certificate is of this cluster
	Ready    bool   `json:"ready"`
	Foreign  bool   `json:"foreign"` // it is no API server of this cluster
	Error    string `json:"error,omitempty"`
}

// connector connects as a process of the attached cgroup would, several times
// at once if it is asked to.
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

const (
	// readyWait bounds how long /readyz may take: the handshake is what is asked
	// for, and a server that is slow is no reason to hold the node up.
	readyWait = time.Second
	// lateAnswer is how much later than the time is up an answer may come.
	lateAnswer = 200 * time.Millisecond
)

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
	cfg := probe.Config{Strength: probe.TCP, Timeout: req.Timeout, Dial: dial}
	at := apiserver.Endpoint{Addr: req.Addr}
	if req.TLS {
		cfg.Strength, cfg.Trust, cfg.ReadyWait = probe.Ready, req.Trust, readyWait
		if req.Trust != nil {
			at.Host = req.Trust.Host // the one name that the host's own CA certificates count for
		}
	}
	r := probe.Endpoints(ctx, []apiserver.Endpoint{at}, cfg)[0]
	ans.ID = req.ID
	ans.Verified, ans.Foreign = r.Verified, r.Kind == apiserver.KindTLS
	ans.Ready = req.TLS && r.State == apiserver.Live
	if err := errors.Join(r.Err, failed); err != nil {
		ans.Error = err.Error()
	}
	return ans
}

// RunConnectChild is the child's side: it answers requests, one JSON text a
// line, in the order in which the answers come, until its input ends.
func RunConnectChild(in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dec := json.NewDecoder(in)
	var mu sync.Mutex
	enc := json.NewEncoder(out)
	var failed error
	for {
		var req connectRequest
		if err := dec.Decode(&req); errors.Is(err, io.EOF) {
			mu.Lock()
			defer mu.Unlock()
			return failed
		} else if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		go func() {
			ans := connectOnce(ctx, req)
			mu.Lock()
			defer mu.Unlock()
			if err := enc.Encode(ans); err != nil && failed == nil && ctx.Err() == nil {
				failed = fmt.Errorf("write answer: %w", err)
			}
		}()
	}
}

// child is a process of ours inside the cgroup.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.ReadCloser

	mu      sync.Mutex
	enc     *json.Encoder
	last    uint64
	waiting map[uint64]chan connectAnswer
	failed  error // no answer comes any more
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
	c := &child{cmd: cmd, in: in, out: out, enc: json.NewEncoder(in), waiting: map[uint64]chan connectAnswer{}}
	go c.read()
	return c, nil
}

// read hands the answers to those who wait for them.
func (c *child) read() {
	dec := json.NewDecoder(c.out)
	for {
		var ans connectAnswer
		err := dec.Decode(&ans)
		c.mu.Lock()
		if err != nil {
			c.failed = fmt.Errorf("read the answer of the child that connects: %w", err)
			for _, ch := range c.waiting {
				close(ch)
			}
			c.waiting = nil
			c.mu.Unlock()
			return
		}
		if ch := c.waiting[ans.ID]; ch != nil {
			ch <- ans
			delete(c.waiting, ans.ID)
		}
		c.mu.Unlock()
	}
}

func (c *child) connect(ctx context.Context, req connectRequest) (connectAnswer, error) {
	ch := make(chan connectAnswer, 1)
	c.mu.Lock()
	if c.failed != nil {
		defer c.mu.Unlock()
		return connectAnswer{}, c.failed
	}
	c.last++
	req.ID = c.last
	c.waiting[req.ID] = ch
	err := c.enc.Encode(req)
	c.mu.Unlock()
	if err != nil {
		return connectAnswer{}, fmt.Errorf("ask the child that connects: %w", err)
	}
	// It answers within the timeout; what it saw until then is worth waiting for.
	select {
	case ans, ok := <-ch:
		if !ok {
			return ans, c.failed
		}
		return ans, nil
	case <-ctx.Done():
	}
	select {
	case ans, ok := <-ch:
		if ok {
			return ans, nil
		}
		return ans, c.failed
	case <-time.After(lateAnswer):
		return connectAnswer{Error: "no answer in time"}, nil
	}
}

func (c *child) Close() error {
	c.in.Close()
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("end the child that connects: %w", err)
	}
	return nil
}
