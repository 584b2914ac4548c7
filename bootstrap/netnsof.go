package bootstrap

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
)

// netnsCookieOf is the cookie of a process's network namespace. Where only
// programs can tell (Linux 5.8 to 5.13) one is attached for that, for an instant,
// to this process's cgroup, which is cgroup or below it.
func netnsCookieOf(at places, pid int, cgroup string, features bpf.Features, forbid []string) (uint64, error) {
	cookies := natinit.NewCookies(natinit.CookiesConfig{
		Features: features,
		NoOption: slices.Contains(forbid, kernel.FeatureSONetnsCookie),
		Cgroups: func() ([]string, error) {
			kernel.RaiseMemlock(kernel.Inspect(at.hostRoot)) // before Linux 5.11 the program's map counts
			return mounts.OwnCgroups(cgroup)
		},
	})
	defer cookies.Close()
	return askInNetnsOf(at.proc, pid, cookies.Cookie)
}

// askInNetnsOf asks in the network namespace of a process. The thread that enters
// it is not used for anything else again: it ends with its goroutine.
func askInNetnsOf(proc string, pid int, ask func() (uint64, error)) (uint64, error) {
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
		cookie, err := ask()
		answers <- answer{cookie, err}
	}()
	a := <-answers
	return a.cookie, a.err
}
