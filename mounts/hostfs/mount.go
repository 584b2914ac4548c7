package hostfs

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// MountID is the id of the mount that an open file is on, 0 if the kernel does not say. statx has it since 5.8;
// /proc/self/fdinfo since 3.15.
func MountID(fd int) int {
	var st unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st) == nil && st.Mask&unix.STATX_MNT_ID != 0 {
		return int(st.Mnt_id)
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd)) // threads share their files
	if err != nil {
		return 0
	}
	return parseMountID(string(data))
}

func parseMountID(fdinfo string) int {
	for line := range strings.Lines(fdinfo) {
		var id int
		if n, _ := fmt.Sscanf(line, "mnt_id: %d", &id); n == 1 {
			return id
		}
	}
	return 0
}

// MountOf finds the mount that an open file is on, in our mount table or in that of pid 1: the kernel's ids are the same
// in all. It is nil where both do not have it.
func MountOf(fd int) *mountinfo.Info {
	prefix := []byte(strconv.Itoa(MountID(fd)) + " ")
	for _, table := range []string{"/proc/thread-self/mountinfo", "/proc/1/mountinfo"} {
		data, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range bytes.Lines(data) {
			if !bytes.HasPrefix(line, prefix) {
				continue
			}
			if found, err := mountinfo.GetMountsFromReader(bytes.NewReader(line), nil); err == nil && len(found) == 1 {
				return found[0]
			}
		}
	}
	return nil
}
