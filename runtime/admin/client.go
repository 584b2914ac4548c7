package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoRuntime says that no runtime runs with this run directory, or only one
// that is just starting.
var ErrNoRuntime = errors.New("no runtime runs here")

// Client asks the runtime with a run directory. It may be used by several
// goroutines.
type Client struct {
	runDir string
	http   http.Client
}

// askTimeout bounds one question. A runtime that lives answers in a fraction of
// it, also with 30,000 Services.
const askTimeout = 2 * time.Second

// longestReply bounds what is read of an answer.
const longestReply = 256 << 20

// NewClient makes a Client.
func NewClient(runDir string) *Client {
	c := &Client{runDir: runDir}
	c.http.Timeout = askTimeout
	c.http.Transport = &http.Transport{DisableKeepAlives: true, DialContext: c.dial}
	return c
}

func (c *Client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	path, dir, err := reachable(c.runDir, SocketName)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := answersAsRoot(conn.(*net.UnixConn)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s in %s: %w", SocketName, c.runDir, err)
	}
	return conn, nil
}

// ErrUntrusted says that what listens in the run directory is not a runtime that root started.
var ErrUntrusted = errors.New("not trusted")

// answersAsRoot asks the kernel who listens: in a run directory that others may write, anybody could.
func answersAsRoot(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var peerErr error
	if err := raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if peerErr != nil {
		return fmt.Errorf("ask who listens: %w", peerErr)
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: pid %d of uid %d listens there: end it, and see who may write the directory", ErrUntrusted, peer.Pid, peer.Uid)
	}
	return nil
}

// Services are all Service ports that the runtime knows. The error matches
// ErrNoRuntime where none runs.
func (c *Client) Services(ctx context.Context) ([]Service, error) {
	var out []Service
	err := c.get(ctx, "/v1/services", &out)
	return out, err
}

// Status is how the runtime is. The error matches ErrNoRuntime where none runs.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var out Status
	if err := c.get(ctx, "/v1/status", &out); err != nil {
		return nil, err
	}
	return &out, nil
}

func (c *Client) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://runtime"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: nobody listens in %s", ErrNoRuntime, c.runDir)
	case err != nil:
		return fmt.Errorf("ask the runtime: %w", err)
	}
	defer resp.Body.Close()
	body := io.LimitReader(resp.Body, longestReply)
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(body, 200))
		return fmt.Errorf("ask the runtime for %s: %s: %q", path, resp.Status, text)
	}
	if err := json.NewDecoder(body).Decode(into); err != nil {
		return fmt.Errorf("read what the runtime says of %s: %w", path, err)
	}
	return nil
}
