package proof

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// ChildCommand is the hidden command by which the program runs itself as the
// child that connects from inside a cgroup.
const ChildCommand = "__connect"

// RunChild is the child's side: it answers requests, one JSON text a
// line, in the order in which the answers come, until its input ends.
func RunChild(in io.Reader, out io.Writer) error {
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

// StartChild starts a child of ours inside the cgroup (clone3 with
// CLONE_INTO_CGROUP, Linux 5.7), unless into is false or the kernel refuses: then
// the child is moved there before its first request.
func StartChild(ctx context.Context, cgroup, binary string, into bool) (Connector, error) {
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
	cmd := exec.CommandContext(ctx, binary, ChildCommand)
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

// Close ends the child.
func (c *child) Close() error {
	c.in.Close()
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("end the child that connects: %w", err)
	}
	return nil
}
