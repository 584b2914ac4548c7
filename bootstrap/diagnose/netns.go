package diagnose

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/mounts/ns"
	"github.com/firsthop/firsthop/natinit"
)

// netnsCookieOf is the cookie of a process's network namespace. Where only
// programs can tell (Linux 5.8 to 5.13) one is attached for that, for an instant,
// to this process's cgroup, which is cgroup or below it.
func netnsCookieOf(at mounts.Places, pid int, cgroup string, features bpf.Features, forbid []string) (cookie uint64, err error) {
	cookies := natinit.NewCookies(natinit.CookiesConfig{
		Features: features,
		NoOption: slices.Contains(forbid, kernel.FeatureSONetnsCookie),
		Cgroups: func() ([]string, error) {
			kernel.RaiseMemlock(kernel.Inspect(at.HostRoot)) // before Linux 5.11 the program's map counts
			return mounts.OwnCgroups(cgroup)
		},
	})
	defer cookies.Close()
	process, err := os.Open(filepath.Join(at.Proc, strconv.Itoa(pid)))
	if err != nil {
		return 0, fmt.Errorf("open the network namespace of process %d: %w", pid, err)
	}
	defer process.Close()
	err = ns.Do(func() error {
		if err := ns.EnterOf(process, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace of process %d: %w", pid, err)
		}
		cookie, err = cookies.Cookie()
		return err
	})
	return cookie, err
}
