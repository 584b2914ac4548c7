package health

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/firsthop/firsthop/natinit/hostproc"
)

// Holder finds who listens on a TCP port of this network namespace, by its name and process id: "kube-proxy (pid 42)".
// "" when none does or it is unknown: processes of another process-id namespace are not seen, and those of others
// need CAP_SYS_PTRACE. It looks through all processes, tens of milliseconds on a full node.
func Holder(port uint16) string { return holderIn("/proc", port) }

func holderIn(proc string, port uint16) string {
	sockets := map[string]bool{}
	for _, file := range []string{"tcp", "tcp6"} {
		listenersOf(filepath.Join(proc, "thread-self/net", file), port, sockets)
	}
	if len(sockets) == 0 {
		return ""
	}
	processes, err := filepath.Glob(filepath.Join(proc, "[0-9]*"))
	if err != nil {
		return ""
	}
	for _, dir := range processes {
		if !holds(dir, sockets) {
			continue
		}
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue // it has just ended
		}
		return fmt.Sprintf("%s (pid %s)", hostproc.Printable(strings.TrimSpace(string(name))), filepath.Base(dir))
	}
	return ""
}

// listenersOf adds the sockets that listen on a port, as links in /proc/PID/fd name them. Format: proc_net_tcp.rst of the kernel.
func listenersOf(path string, port uint16, sockets map[string]bool) {
	const (
		local, state, inode = 1, 3, 9
		listen              = "0A"
	)
	f, err := os.Open(path)
	if err != nil {
		return // no IPv6
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) <= inode || fields[state] != listen {
			continue
		}
		_, hex, _ := strings.Cut(fields[local], ":")
		if n, err := strconv.ParseUint(hex, 16, 16); err == nil && uint16(n) == port {
			sockets["socket:["+fields[inode]+"]"] = true
		}
	}
}

func holds(process string, sockets map[string]bool) bool {
	fds, err := os.ReadDir(filepath.Join(process, "fd"))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if target, err := os.Readlink(filepath.Join(process, "fd", fd.Name())); err == nil && sockets[target] {
			return true
		}
	}
	return false
}
