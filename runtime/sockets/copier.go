package sockets

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
	"github.com/firsthop/firsthop/mounts/ns"
)

// holder is a process and its descriptor of a socket. It is a hint: both numbers may be others' by the time that they are
// used.
type holder struct{ pid, fd int }

// errNoCopy says that the socket could not be copied: nobody holds it where we looked.
var errNoCopy = errors.New("no process is known that holds the socket")

// ErrCannotMove says that no socket at all can be moved.
var ErrCannotMove = errors.New("connected UDP sockets cannot be moved")

// copier copies sockets of other processes. For one goroutine. The zero value is ready.
type copier struct{ pid, pidfd int }

// copy gives a descriptor of our own of the socket with a cookie. Its error matches errNoCopy where the holder does not
// hold it (any more), ErrCannotMove where the kernel has no way, and privileges.ErrRefused. The descriptor may be of
// anything until its cookie was compared: nothing else is done with it before.
func (c *copier) copy(h holder, cookie uint64) (fd int, err error) {
	if c.pidfd == 0 || c.pid != h.pid {
		c.close()
		pidfd, err := unix.PidfdOpen(h.pid, 0)
		if err != nil {
			return -1, explainCopy("pidfd_open", h, err)
		}
		c.pid, c.pidfd = h.pid, pidfd
	}
	fd, err = unix.PidfdGetfd(c.pidfd, h.fd, 0)
	if err != nil {
		return -1, explainCopy("pidfd_getfd", h, err)
	}
	if got, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil || got != cookie {
		unix.Close(fd)
		return -1, errNoCopy
	}
	return fd, nil
}

func (c *copier) close() {
	if c.pidfd != 0 {
		unix.Close(c.pidfd)
	}
	c.pid, c.pidfd = 0, 0
}

func explainCopy(call string, h holder, err error) error {
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EBADF), errors.Is(err, unix.EINVAL):
		return errNoCopy
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: %s: %w (Linux 5.6 has it)", ErrCannotMove, call, err)
	}
	return privileges.Refused(call, fmt.Sprintf("a socket of process %d", h.pid), err, unix.CAP_SYS_PTRACE)
}

// sameProcesses reports whether process numbers of a /proc are this process's own, as pidfd_open takes no others.
func sameProcesses(proc string) error {
	if !ns.Differ("/proc/self/ns/pid", proc+"/1/ns/pid") {
		return nil // another failure names itself later
	}
	return fmt.Errorf("%w: the host's processes are in another PID namespace: give the container hostPID: true", ErrCannotMove)
}
