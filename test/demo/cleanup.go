package main

import (
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/firsthop/firsthop/test/lab"
	"golang.org/x/sys/unix"
)

// startCleaner starts a process that outlives this one and removes what this one leaves if it is killed: SIGKILL, or
// SIGPIPE when nobody reads the output any more. It sees the end of this process at the end of its standard input. The
// returned function ends it.
func startCleaner() (stop func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, cleanCommand, strconv.Itoa(os.Getpid()))
	cmd.Stdin = r
	// Ctrl-C goes to the whole process group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	r.Close()
	if err != nil {
		w.Close()
		return nil, err
	}
	return func() error {
		if _, err := w.WriteString("done"); err != nil {
			return err
		}
		w.Close()
		return cmd.Wait()
	}, nil
}

// cleanCommand is `demo clean-after PID`, see startCleaner.
const cleanCommand = "clean-after"

// cleanAfter waits for the end of a process, and removes what it has left.
func cleanAfter(pid string) error {
	signal.Ignore(os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	if said, err := io.ReadAll(os.Stdin); err != nil || len(said) > 0 {
		return err // it has removed everything itself
	}
	for { // its id is in use until its parent knows that it has ended
		if _, err := os.Stat("/proc/" + pid); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return lab.Sweep()
}
