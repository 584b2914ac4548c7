// Package memory says how much memory there is.
package memory

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Total is the memory of the node, in bytes; 0 if it can't be told. A container sees the node's, too. root is a prefix
// for tests.
func Total(root string) uint64 {
	text, err := os.ReadFile(root + "/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[0] == "MemTotal:" && fields[2] == "kB" {
			kib, err := strconv.ParseUint(fields[1], 10, 54)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

// Limit is the limit of the cgroup that this process is in, in bytes, and the file
// that says so; 0 if there is none, or it can't be told. root is a prefix for
// tests. A limit of a cgroup above isn't seen from inside of a container.
func Limit(root string) (limit uint64, file string) {
	cgroups, err := os.ReadFile(root + "/proc/self/cgroup")
	if err != nil {
		return 0, ""
	}
	for line := range strings.Lines(string(cgroups)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		var files []string
		switch controllers := strings.Split(parts[1], ","); {
		case parts[1] == "":
			files = []string{filepath.Join("/sys/fs/cgroup", parts[2], "memory.max")}
		case len(controllers) == 1 && controllers[0] == "memory":
			// Without a cgroup namespace the path is the host's, and the mount is of the container's cgroup.
			files = []string{filepath.Join("/sys/fs/cgroup/memory", parts[2], "memory.limit_in_bytes"), "/sys/fs/cgroup/memory/memory.limit_in_bytes"}
		}
		for _, f := range files {
			text, err := os.ReadFile(root + f)
			if err != nil {
				continue
			}
			n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
			if err != nil { // "max"
				return 0, f
			}
			return n, f
		}
	}
	return 0, ""
}
