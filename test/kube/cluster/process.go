package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/lab"
)

// Process is a program that runs in a lab. What it writes goes to a file; the end of it is shown when the test fails.
type Process struct {
	Name string
	Log  string // the file

	t    testing.TB
	cmd  *lab.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how; valid once done is closed
}

// start starts a program in a lab and in its cgroup. It is killed with the test.
func (c *Cluster) start(in *lab.Lab, name, path string, args ...string) *Process {
	c.t.Helper()
	p, err := newProcess(c.t, in, name, path, args)
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

func newProcess(t testing.TB, in *lab.Lab, name, path string, args []string) (*Process, error) {
	p := &Process{Name: name, Log: filepath.Join(in.Dir, name+".log"), t: t, done: make(chan struct{})}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = in.Command(context.Background(), path, args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	var once sync.Once
	t.Cleanup(func() {
		once.Do(func() {
			p.Kill()
			if t.Failed() {
				t.Logf("the end of %s:\n%s", p.Log, tail(p.Log))
			}
		})
	})
	return p, nil
}

// PID is the process's id, which may belong to another one once it has ended.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// ended returns an error if the process has ended.
func (p *Process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %v", p.Name, p.err)
	default:
		return nil
	}
}

// Kill ends the process at once and waits until it is gone. It does nothing if it has ended.
func (p *Process) Kill() {
	p.signal(unix.SIGKILL)
	<-p.done
}

// Stop asks the process to end, waits until it has, and returns how it did: nil for exit code 0.
func (p *Process) Stop() error {
	p.t.Helper()
	p.signal(unix.SIGTERM)
	select {
	case <-p.done:
		return p.err
	case <-time.After(patience):
		p.t.Fatalf("%s does not end", p.Name)
		return nil
	}
}

// Pause makes the process do nothing, with its sockets open, until Resume.
func (p *Process) Pause() { p.signal(unix.SIGSTOP) }

// Resume ends a Pause.
func (p *Process) Resume() { p.signal(unix.SIGCONT) }

// signal goes by os.Process, which never signals a process that has been waited for.
func (p *Process) signal(s unix.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil && p.ended() == nil {
		// It may be ending just now, which is no failure.
		p.t.Logf("send %v to %s: %v", s, p.Name, err)
	}
}

// tail returns the last lines of a file.
func tail(path string) []byte {
	data, err := os.ReadFile(path)
	if err != nil {
		return []byte(err.Error())
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-40):], nil)
}
