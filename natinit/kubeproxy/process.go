package kubeproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is one that is kube-proxy, or has it inside.
type Process struct {
	PID      int    `json:"pid"`      // in the PID namespace of Config.Proc
	Name     string `json:"name"`     // the kernel's name of it: at most 15 bytes
	Embedded bool   `json:"embedded"` // kube-proxy is a part of it, or not: rules tell
}

func (p Process) String() string { return fmt.Sprintf("%s, pid %d", p.Name, p.PID) }

func anyProper(processes []Process) bool {
	return slices.ContainsFunc(processes, func(p Process) bool { return !p.Embedded })
}

func joinProcesses(processes []Process) string {
	if len(processes) == 0 {
		return "process not seen"
	}
	var s []string
	for _, p := range processes {
		s = append(s, p.String())
	}
	return strings.Join(s, "; ")
}

// processLook is what the list of processes gave.
type processLook struct {
	processes []Process
	evidence  Evidence
}

// lookForProcesses goes through a /proc. It opens one file a process: there
// may be thousands.
func lookForProcesses(ctx context.Context, root, proc string, own namespace) processLook {
	look := processLook{evidence: Evidence{Source: SourceProcess, Found: Unknown}}
	dir, err := os.Open(proc)
	if err != nil {
		look.evidence.Detail = err.Error()
		return look
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		look.evidence.Detail = err.Error()
		return look
	}
	var elsewhere []string
	node := false
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if ctx.Err() != nil {
			look.evidence.Detail = ctx.Err().Error()
			return look
		}
		comm := readComm(int(dir.Fd()), name)
		node = node || showsNode(pid, comm)
		embedded, ok := isKubeProxy(comm)
		if !ok || !runs(root, proc, pid, comm) {
			continue
		}
		p := Process{PID: pid, Name: comm, Embedded: embedded}
		if comm == "hyperkube" {
			p.Embedded = false // runs() has read its arguments
		}
		if ns := namespaceOf(filepath.Join(proc, name, "ns/net")); ns.known && own.known && ns != own {
			elsewhere = append(elsewhere, p.String())
			continue
		}
		look.processes = append(look.processes, p)
	}
	look.evidence.Found, look.evidence.Detail = judgeProcesses(look.processes, elsewhere, node, proc)
	return look
}

func judgeProcesses(here []Process, elsewhere []string, node bool, proc string) (Answer, string) {
	if len(here) > 0 {
		detail := joinProcesses(here)
		if !anyProper(here) {
			detail += " (has kube-proxy inside, unless it is switched off)"
		}
		return Yes, detail
	}
	if !node {
		return Unknown, proc + " shows only the processes of a container: run with hostPID, or give the host's /proc"
	}
	if len(elsewhere) > 0 {
		return No, "only in other network namespaces: " + strings.Join(elsewhere, "; ")
	}
	return No, "none"
}

// readComm reads a process's name; "" when it has ended.
func readComm(dir int, pid string) string {
	fd, err := unix.Openat(dir, pid+"/comm", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var buf [64]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil || n <= 0 {
		return ""
	}
	return string(bytes.TrimSuffix(buf[:n], []byte("\n")))
}

// isKubeProxy knows kube-proxy by its name, and those that have it inside.
func isKubeProxy(comm string) (embedded, ok bool) {
	switch comm {
	case "kube-proxy":
		return false, true
	case "k3s", "k3s-server", "k3s-agent", "kubelite", "hyperkube":
		return true, true
	}
	return false, false
}

// showsNode tells whether a process is one that only a node's own list has:
// the kernel's first thread, an init, or the kubelet. A container without
// hostPID sees none of them, and must not conclude that nothing runs.
func showsNode(pid int, comm string) bool {
	switch {
	case pid == 2 && comm == "kthreadd":
		return true
	case pid == 1 && (comm == "systemd" || comm == "init" || comm == "openrc-init"):
		return true
	}
	_, kubernetes := isKubeProxy(comm)
	return kubernetes || comm == "kubelet"
}

// runs says no for a process that has ended and only waits for its parent,
// and for those whose arguments say that they aren't kube-proxy: another part
// of hyperkube, or k3s without it.
func runs(root, proc string, pid int, comm string) bool {
	dir := filepath.Join(proc, strconv.Itoa(pid))
	if stat, err := os.ReadFile(filepath.Join(dir, "stat")); errors.Is(err, os.ErrNotExist) || ended(stat) {
		return false
	}
	switch comm {
	case "kube-proxy", "kubelite":
		return true
	}
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return true // not known to be without it
	}
	args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	if comm == "hyperkube" {
		return len(args) > 1 && (args[1] == "kube-proxy" || args[1] == "proxy")
	}
	return !slices.Contains(args, "--disable-kube-proxy") && !slices.Contains(args, "--disable-kube-proxy=true") && !k3sWithout(root)
}

// ended reads the state of /proc/PID/stat, which follows the name: "12 (a) b) Z 1 …".
func ended(stat []byte) bool {
	i := bytes.LastIndexByte(stat, ')')
	return i >= 0 && len(stat) > i+2 && (stat[i+2] == 'Z' || stat[i+2] == 'X')
}

// k3sWithout reads the one line that matters of k3s's configuration files.
func k3sWithout(root string) bool {
	dir := filepath.Join("/", root, "etc/rancher/k3s")
	more, _ := filepath.Glob(filepath.Join(dir, "config.yaml.d", "*.yaml"))
	for _, file := range append([]string{filepath.Join(dir, "config.yaml")}, more...) {
		data, err := os.ReadFile(file)
		if err == nil && disablesKubeProxy(data) {
			return true
		}
	}
	return false
}

func disablesKubeProxy(yaml []byte) bool {
	for line := range bytes.Lines(yaml) {
		key, value, ok := bytes.Cut(line, []byte(":"))
		value, _, _ = bytes.Cut(value, []byte("#"))
		if ok && strings.Trim(string(key), `"'`) == "disable-kube-proxy" && strings.Trim(string(value), " \t\r\n\"'") == "true" {
			return true
		}
	}
	return false
}

// namespace identifies a namespace by its inode, as namespaces(7) says.
type namespace struct {
	dev, ino uint64
	known    bool
}

func namespaceOf(path string) namespace {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return namespace{}
	}
	return namespace{dev: uint64(st.Dev), ino: st.Ino, known: true}
}
