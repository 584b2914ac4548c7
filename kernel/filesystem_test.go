package kernel

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFileSystemWithoutList: a /proc with subset=pid has no list of file systems, but the kernel can be asked.
func TestFileSystemWithoutList(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: fsopen takes CAP_SYS_ADMIN")
	}
	for _, name := range []string{"bpf", "cgroup2"} {
		err := fileSystemWithoutList(name, fs.ErrNotExist)
		if err != nil && !errors.Is(err, unix.ENOSYS) { // below 5.2 there is no fsopen, and then it is only unknown
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := fileSystemWithoutList("firsthopfs", fs.ErrNotExist); err == nil || !errors.Is(err, ErrNotSupported) && !strings.Contains(err.Error(), "subset=pid") {
		t.Errorf("a file system that nobody has: %v", err)
	}
}
