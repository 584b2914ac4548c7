package sockets

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
)

// holder is a process and its descriptor of a socket. It is a hint: both numbers may be others' by the time that they are
// used.
type holder struct{ pid, fd int }

// finder looks for who holds sockets.
type finder struct {
	proc string
	// held are the descriptors that are known already, and not read again.
	held map[holder]uint64
	// wanted are sockets by the inode of their file.
	wanted map[uint32]uint64
	found  func(cookie uint64, h holder)
	// refused is why processes could not be looked at; nil: all could.
	refused error
}

// look goes through processes until all wanted sockets are found.
func (f *finder) look(ctx context.Context, pids []int) {
	for _, pid := range pids {
		if len(f.wanted) == 0 || ctx.Err() != nil {
			return
		}
		f.process(pid)
	}
}

func (f *finder) process(pid int) {
	path := filepath.Join(f.proc, strconv.Itoa(pid), "fd")
	dir, err := os.Open(path)
	if err != nil {
		f.note(path, err)
		return
	}
	defer dir.Close()
	link := make([]byte, 64)
	for len(f.wanted) > 0 {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			fd, _ := strconv.Atoi(name)
			h := holder{pid, fd}
			if _, known := f.held[h]; known {
				continue
			}
			n, err := unix.Readlinkat(int(dir.Fd()), name, link)
			if err != nil {
				f.note(path, err)
				continue
			}
			inode, ok := socketInode(link[:n])
			if !ok {
				continue
			}
			if cookie, is := f.wanted[inode]; is {
				delete(f.wanted, inode)
				f.found(cookie, h)
			}
		}
		if err != nil || len(names) == 0 {
			return
		}
	}
}

func (f *finder) note(path string, err error) {
	if f.refused == nil && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)) {
		// A process of another user keeps root from its descriptors by their mode alone.
		f.refused = privileges.Refused("look through", path, err, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH)
	}
}

// socketInode reads "socket:[123]".
func socketInode(link []byte) (uint32, bool) {
	s, ok := strings.CutPrefix(string(link), "socket:[")
	s, closed := strings.CutSuffix(s, "]")
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), ok && closed && err == nil
}

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
	var ours, theirs unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &ours); err != nil {
		return nil
	}
	if err := unix.Stat(proc+"/1/ns/pid", &theirs); err != nil || theirs.Ino == ours.Ino {
		return nil // another failure names itself later
	}
	return fmt.Errorf("%w: the host's processes are in another PID namespace: give the container hostPID: true", ErrCannotMove)
}
