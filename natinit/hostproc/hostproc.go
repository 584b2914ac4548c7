// Package hostproc knows processes of the host by who started them: systemd's or OpenRC's unit, or a pod of the kubelet.
//
// A name proves nothing: every user may call a process kubelet, on the host or in a container. What no user can choose
// is the cgroup in which systemd starts a unit, or the kubelet a pod; the ids of root; and the parent.
//
//   - A unit's main process runs in the unit's cgroup, all of whose parents are slices (a user's own systemd is a
//     service of the host's), has all four of its user ids 0, is in the process-id namespace of the given /proc, and is a
//     child of process 1. What it starts itself has another parent.
//   - OpenRC writes the process id to a file that only root may write. That process, or its child where OpenRC supervises
//     it, must be root's, and the process of the file not younger than the file.
//   - A pod's process runs in a cgroup that has the pod's uid in its name. Which pods matter is the caller's to know.
//
// The user ids are as this process's user namespace sees them: root of a namespace that a user made is that user here.
package hostproc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

// Config says where to look.
type Config struct {
	Root string // prefix of the host's files; "" on the host
	Proc string // the host's /proc; "" is Root's
}

func (c Config) proc() string {
	if c.Proc != "" {
		return c.Proc
	}
	return filepath.Join("/", c.Root, "proc")
}

// Process is one of the host.
type Process struct {
	PID  int
	Unit string // "kubelet" of kubelet.service, "" if none has started it
	Pod  string // uid of its pod, "" if it is in none
	Name string // what it calls itself: for people only
}

// Units finds the main processes of units by their names without ".service".
func (c Config) Units(units ...string) ([]Process, error) {
	found, err := c.eachOfInit(wanted(func(unit, _ string) bool { return slices.Contains(units, unit) }))
	return c.addOpenRC(found, units), err
}

// UnitsAndPods finds main processes of units, and root's processes in pods.
func (c Config) UnitsAndPods(units, pods []string) ([]Process, error) {
	if len(pods) == 0 {
		return c.Units(units...)
	}
	found, err := c.each(wanted(func(unit, pod string) bool {
		return slices.Contains(units, unit) || pod != "" && slices.Contains(pods, pod)
	}))
	return c.addOpenRC(found, units), err
}

// addOpenRC adds the processes of units that systemd has not started.
func (c Config) addOpenRC(found []Process, units []string) []Process {
	for _, unit := range units {
		if !slices.ContainsFunc(found, func(p Process) bool { return p.Unit == unit }) {
			found = append(found, c.openRC(unit)...)
		}
	}
	return found
}

// Named finds processes of root that call themselves something. That is no proof of anything: who started them is not
// known.
func (c Config) Named(name string) ([]Process, error) {
	return c.each(func(dir int, pid string) (Process, bool) {
		if strings.TrimSuffix(readAt(dir, pid+"/comm"), "\n") != name {
			return Process{}, false
		}
		st, ok := parseStatus(readAt(dir, pid+"/status"))
		return Process{Name: st.name}, ok && st.root && !st.ended
	})
}

// Host tells whether the processes are those of a node, not only those of a container: the kernel's own threads are
// seen, or the first process is systemd or OpenRC.
func (c Config) Host() bool {
	const kernelThread = 0x00200000 // PF_KTHREAD
	if stat, err := os.ReadFile(filepath.Join(c.proc(), "2/stat")); err == nil && flagsOf(string(stat))&kernelThread != 0 {
		return true
	}
	files := hostfs.FS{Root: c.Root}
	return files.CheckTrusted("/run/systemd/system") == nil || files.CheckTrusted("/run/openrc") == nil
}

// Args are the arguments of a process, its name first.
func (c Config) Args(p Process) []string {
	b, err := os.ReadFile(filepath.Join(c.proc(), strconv.Itoa(p.PID), "cmdline"))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
}

// wanted chooses main processes of units, and processes in pods.
func wanted(want func(unit, pod string) bool) func(dir int, pid string) (Process, bool) {
	return func(dir int, pid string) (Process, bool) {
		group := cgroupOf(readAt(dir, pid+"/cgroup"))
		p := Process{Unit: unitOf(group), Pod: podOf(group)}
		if p.Unit == "" && p.Pod == "" || !want(p.Unit, p.Pod) {
			return p, false
		}
		st, ok := parseStatus(readAt(dir, pid+"/status"))
		p.Name = st.name
		return p, ok && st.root && !st.ended && (p.Unit == "" || st.ownNamespace && st.parent == 1)
	}
}

// each goes through all processes. look should open one file for most of them: there may be thousands.
func (c Config) each(look func(dir int, pid string) (Process, bool)) ([]Process, error) {
	dir, err := os.Open(c.proc())
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	return lookAt(dir, names, look), nil
}

// eachOfInit goes through the children of process 1, which the kernel lists by themselves (CONFIG_PROC_CHILDREN, Linux
// 4.2): a node has thousands of processes, and some dozens of services.
func (c Config) eachOfInit(look func(dir int, pid string) (Process, bool)) ([]Process, error) {
	var names []string
	for range 2 { // one that follows a process which ends meanwhile may be left out (proc_pid_children(5))
		b, err := os.ReadFile(filepath.Join(c.proc(), "1/task/1/children"))
		if err != nil {
			return c.each(look)
		}
		names = append(names, strings.Fields(string(b))...)
	}
	dir, err := os.Open(c.proc())
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	slices.Sort(names)
	return lookAt(dir, slices.Compact(names), look), nil
}

func lookAt(dir *os.File, names []string, look func(dir int, pid string) (Process, bool)) (found []Process) {
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if p, ok := look(int(dir.Fd()), name); ok {
			p.PID = pid
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b Process) int { return a.PID - b.PID })
	return found
}

// readAt reads a small file of a process; "" when it has ended.
func readAt(dir int, name string) string {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var buf [4096]byte
	n := 0
	for n < len(buf) {
		m, err := unix.Read(fd, buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || m <= 0 {
			break
		}
		n += m
	}
	return string(buf[:n])
}

// openRC finds the process of a service of OpenRC.
func (c Config) openRC(service string) []Process {
	files := hostfs.FS{Root: c.Root}
	if !files.Exists("/run/openrc") {
		return nil
	}
	for _, file := range []string{"/run/" + service + ".pid", "/run/supervise-" + service + ".pid", "/run/" + service + "/" + service + ".pid"} {
		b, err := files.ReadTrusted(file)
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil || pid <= 1 || !c.olderThan(pid, files, file) {
			continue
		}
		if found := c.withChildren(pid, service); len(found) > 0 {
			return found
		}
	}
	return nil
}

// withChildren is a process and its children, those that are root's in the host's namespaces.
func (c Config) withChildren(pid int, unit string) []Process {
	found, err := c.each(func(dir int, name string) (Process, bool) {
		st, ok := parseStatus(readAt(dir, name+"/status"))
		return Process{Unit: unit, Name: st.name}, ok && (name == strconv.Itoa(pid) || st.parent == pid) && st.root && st.ownNamespace && !st.ended
	})
	if err != nil {
		return nil
	}
	if !slices.ContainsFunc(found, func(p Process) bool { return p.PID == pid }) {
		return nil // the children of somebody else's
	}
	return found
}

// olderThan tells whether a process was there when the file with its number was written: numbers are used again.
func (c Config) olderThan(pid int, files hostfs.FS, file string) bool {
	written, err := files.ModTime(file)
	if err != nil {
		return false
	}
	stat, err := os.ReadFile(filepath.Join(c.proc(), strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	boot, err := os.ReadFile(filepath.Join(c.proc(), "stat"))
	if err != nil {
		return false
	}
	started, ok := startTime(string(stat), string(boot))
	return ok && started <= written.Unix()+1
}
