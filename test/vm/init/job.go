package main

import (
	"bufio"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/vm/wire"
)

// afterQuit is how long a program may take to print its stacks.
const afterQuit = 5 * time.Second

// run runs a job and puts its output on the wire. When it ends, all that it started is ended too.
func run(job wire.Job, w io.Writer) (o wire.Outcome) {
	r, out, err := os.Pipe()
	if err != nil {
		return wire.Outcome{Code: 127, Error: err.Error()}
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return wire.Outcome{Code: 127, Error: err.Error()}
	}
	defer null.Close()
	pid, err := syscall.ForkExec(job.Argv[0], job.Argv, &syscall.ProcAttr{
		Dir:   job.Dir,
		Env:   append([]string{"PATH=/usr/bin:/usr/sbin", "HOME=/tmp", "TMPDIR=/tmp"}, job.Env...),
		Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	out.Close()
	if err != nil {
		return wire.Outcome{Code: 127, Error: err.Error()}
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		copyLines(w, r)
	}()
	quit := time.AfterFunc(time.Duration(job.Seconds)*time.Second, func() { _ = unix.Kill(pid, unix.SIGQUIT) })
	kill := time.AfterFunc(time.Duration(job.Seconds)*time.Second+afterQuit, func() { _ = unix.Kill(pid, unix.SIGKILL) })
	o.Code = wait(pid)
	kill.Stop()
	o.Late = !quit.Stop()
	// What is still there must not disturb the next job, nor keep the pipe open.
	if os.Getpid() == 1 {
		_ = unix.Kill(-1, unix.SIGKILL)
	} else {
		_ = unix.Kill(-pid, unix.SIGKILL) // others are the system's
	}
	reap()
	<-copied
	return o
}

// wait waits for a process as PID 1 does: others that end meanwhile are reaped too.
func wait(pid int) (code int) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 127 // can't be: the child is ours
		case got != pid:
		case status.Signaled():
			return 128 + int(status.Signal())
		default:
			return status.ExitStatus()
		}
	}
}

// reap waits until no child is left.
func reap() {
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && err != unix.EINTR {
			return
		}
	}
}

// copyLines puts lines on the wire, the last one also if it isn't ended.
func copyLines(w io.Writer, r io.Reader) {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			_ = wire.Write(w, wire.Line, strings.TrimRight(line, "\r\n")) // there is nobody else to tell
		}
		if err != nil {
			return
		}
	}
}
