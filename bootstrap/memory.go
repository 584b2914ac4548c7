package bootstrap

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// enoughMemory is what a first init was seen to need, maps of the default size
// included: with 32 MiB it is done, with 24 the kernel ends it at some point,
// and with 16 it can't make the maps.
const enoughMemory = 32 << 20

// warnOfMemory says that a limit is too small before anything else happens: who
// is killed for it (exit code 137) has no time to, and what was logged before is
// all that is left. It is no failure, as a second run makes no maps and needs
// less.
func warnOfMemory(root string) (warning string) {
	limit, file := memoryLimit(root)
	if limit == 0 || limit >= enoughMemory {
		return ""
	}
	return fmt.Sprintf("the memory limit of this process is %d MiB (%s), and %d MiB are needed, maps included: give it more if it is killed (exit code 137) or can't create maps",
		limit>>20, file, enoughMemory>>20)
}

// memoryLimit is the limit of the cgroup that this process is in, and the file
// that says so; 0 if there is none, or it can't be told. root is a prefix for
// tests. A limit of a cgroup above isn't seen from inside of a container.
func memoryLimit(root string) (limit uint64, file string) {
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
