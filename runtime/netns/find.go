package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
)

// maxPids is how many processes of a namespace are remembered: the first may
// have ended before it is used.
const maxPids = 4

// Config says where to look.
type Config struct {
	// Proc is a /proc of the host's PID namespace: "/proc" on the host and in a
	// container with hostPID, else where the host's is mounted. "" is "/proc".
	Proc string
	// Root is the prefix of the host's paths, for the bind mounts below
	// /run/netns and /var/run/netns. "" and "/" mean the same.
	Root string
	// Host is the file of the host's network namespace. "" is this process's
	// own: firsthop runs in the host's, in a container by hostNetwork. (That of
	// process 1 may neither be the host's nor readable.)
	Host string
	// EveryPid has List remember all processes of each namespace, not only enough to enter it.
	EveryPid bool
}

// Namespace is a network namespace as it was found. It may be gone when it is visited.
type Namespace struct {
	Inode uint64   // of its file: identifies it now, not over time
	Host  bool     // the host's own
	Pids  []int    // some of its processes, in Proc's numbering; none: it has but a bind mount
	Paths []string // its bind mounts
}

func (c Config) proc() string {
	if c.Proc == "" {
		return "/proc"
	}
	return c.Proc
}

func (c Config) host() string {
	if c.Host == "" {
		return "/proc/self/ns/net" // the main thread's, where no visit ever is
	}
	return c.Host
}

// List finds the namespaces, the host's first. It enters none, and costs one
// stat for each process.
//
// Namespaces of threads that left their process's, and those that only an open
// file or socket holds, are not found. Processes that we may not look at are
// passed over, unless they are the most: then the error matches ErrRefused.
func (c Config) List() ([]Namespace, error) {
	var st unix.Stat_t
	if err := unix.Stat(c.host(), &st); err != nil {
		return nil, privileges.Refused("find the host's network namespace", c.host(), err, unix.CAP_SYS_PTRACE)
	}
	f := finder{dev: st.Dev, at: map[uint64]int{}, maxPids: maxPids}
	if c.EveryPid {
		f.maxPids = math.MaxInt
	}
	f.add(st).Host = true
	err := f.processes(c.proc())
	for _, dir := range []string{"run/netns", "var/run/netns"} {
		f.mounts(filepath.Join("/", c.Root, dir))
	}
	return f.list, err
}

type finder struct {
	maxPids int    // that are remembered of each namespace
	dev     uint64 // of nsfs, of which the kernel has one: what isn't there is no namespace
	list    []Namespace
	at      map[uint64]int // inode -> where in list
}

func (f *finder) add(st unix.Stat_t) *Namespace {
	i, ok := f.at[st.Ino]
	if !ok {
		i = len(f.list)
		f.at[st.Ino] = i
		f.list = append(f.list, Namespace{Inode: st.Ino})
	}
	return &f.list[i]
}

func (f *finder) processes(proc string) error {
	dir, err := os.Open(proc)
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	seen, refused := 0, 0
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstatat(int(dir.Fd()), name+"/ns/net", &st, 0)
		switch {
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), err == nil && st.Dev != f.dev:
			refused++ // Debian's 5.10 doesn't say EACCES: its link leads to its own directory then
		case err == nil:
			seen++
			if n := f.add(st); len(n.Pids) < f.maxPids {
				n.Pids = append(n.Pids, pid)
			}
		}
		// Any other error: the process has ended.
	}
	// A few may be out of reach, as the first process is on some systems.
	if refused > seen {
		return privileges.Refused("find the network namespaces of processes", proc, unix.EACCES, unix.CAP_SYS_PTRACE)
	}
	return nil
}

// mounts adds the namespaces that are mounted in a directory. One that isn't
// there is no error, nor is a name on which nothing is mounted: the host's own
// mount namespace may not be ours, and names outlive a reboot where /run does.
func (f *finder) mounts(dir string) {
	if st, err := os.Lstat(filepath.Dir(dir)); err != nil || st.Mode()&fs.ModeSymlink != 0 {
		return // /var/run is /run nearly everywhere
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil && st.Dev == f.dev {
			if n := f.add(st); !slices.Contains(n.Paths, path) {
				n.Paths = append(n.Paths, path)
			}
		}
	}
}

// open opens the file of a namespace, by whichever way to it still leads there.
// It pins the namespace, so it must not be kept.
func (c Config) open(n Namespace) (fd int, err error) {
	var ways []string
	if n.Host {
		ways = append(ways, c.host())
	}
	for _, pid := range n.Pids {
		ways = append(ways, filepath.Join(c.proc(), strconv.Itoa(pid), "ns/net"))
	}
	err = fs.ErrNotExist
	for _, path := range append(ways, n.Paths...) {
		var st unix.Stat_t
		if fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			continue
		}
		if err = unix.Fstat(fd, &st); err == nil && st.Ino == n.Inode {
			return fd, nil
		}
		unix.Close(fd)
		err = fs.ErrNotExist // the process number is another's now
	}
	return -1, err
}
