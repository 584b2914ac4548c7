package lab

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/vishvananda/netns"

	"github.com/firsthop/firsthop/mounts/ns"
)

// Cmd is an exec.Cmd whose process is born inside a lab: in its network namespace and, before its first instruction, in
// its cgroup. Only the methods that start it differ. It dies with the process that made the lab.
type Cmd struct {
	*exec.Cmd
	starter *starter
	cgroup  *os.File
}

// Command prepares a process inside the lab's network namespace and cgroup.
func (l *Lab) Command(ctx context.Context, name string, args ...string) *Cmd {
	return newCmd(ctx, l.starter, l.cgroupFD, name, args)
}

// waitDelay is how long the output of a killed process is waited for.
const waitDelay = time.Second

// newCmd prepares a process that l.starter starts in an open cgroup.
func newCmd(ctx context.Context, s *starter, cgroup *os.File, name string, args []string) *Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	// The thread that starts the process is the lab's own and lives as long: see PR_SET_PDEATHSIG in prctl(2).
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if haveCloneIntoCgroup() { // else Start does it, when all else about the command is known
		IntoCgroup(cmd, cgroup)
	}
	// A shell that is killed may leave a child that has its output open, and for which Wait would wait.
	cmd.WaitDelay = waitDelay
	return &Cmd{Cmd: cmd, starter: s, cgroup: cgroup}
}

// Start is exec.Cmd.Start inside the lab.
func (c *Cmd) Start() error {
	IntoCgroup(c.Cmd, c.cgroup)
	return c.starter.do(c.Cmd.Start)
}

// Run is exec.Cmd.Run inside the lab.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output is exec.Cmd.Output inside the lab: on failure, the exec.ExitError holds all of the standard error.
func (c *Cmd) Output() ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout = &stdout
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	err := c.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		exit.Stderr = stderr.Bytes()
	}
	return stdout.Bytes(), err
}

// CombinedOutput is exec.Cmd.CombinedOutput inside the lab.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// starter is a thread that lives in a network namespace. A process gets the namespaces of the thread that forks it, and
// its parent-death signal when that thread ends; so the thread is kept for as long as the lab.
type starter struct {
	calls chan func()
	quit  chan struct{}
	ended chan struct{}
}

func newStarter(home netns.NsHandle) (*starter, error) {
	s := &starter{calls: make(chan func()), quit: make(chan struct{}), ended: make(chan struct{})}
	ready := make(chan error)
	go func() {
		defer close(s.ended)
		_ = ns.Do(func() error {
			err := netns.Set(home)
			ready <- err
			if err != nil {
				return err
			}
			for {
				select {
				case call := <-s.calls:
					call()
				case <-s.quit:
					return nil
				}
			}
		})
	}()
	if err := <-ready; err != nil {
		<-s.ended
		return nil, err
	}
	return s, nil
}

func (s *starter) do(fn func() error) error {
	errc := make(chan error, 1)
	select {
	case s.calls <- func() { errc <- fn() }:
		return <-errc
	case <-s.ended:
		return errors.New("start a process in a lab that is closed")
	}
}

// stop ends the thread; it is called once.
func (s *starter) stop() {
	close(s.quit)
	<-s.ended
}
