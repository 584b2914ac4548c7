package bootstrap

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/natinit"
)

// netnsCookieOf is the cookie of a process's network namespace. The thread that
// enters it is not used for anything else again: it ends with its goroutine.
func netnsCookieOf(proc string, pid int) (uint64, error) {
	ns, err := os.Open(filepath.Join(proc, strconv.Itoa(pid), "ns/net"))
	if err != nil {
		return 0, fmt.Errorf("open the network namespace of process %d: %w", pid, err)
	}
	defer ns.Close()
	type answer struct {
		cookie uint64
		err    error
	}
	answers := make(chan answer)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			answers <- answer{0, fmt.Errorf("enter the network namespace of process %d: %w", pid, err)}
			return
		}
		cookie, err := natinit.NetnsCookie()
		answers <- answer{cookie, err}
	}()
	a := <-answers
	return a.cookie, a.err
}
