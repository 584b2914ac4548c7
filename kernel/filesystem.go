package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// fileSystem asks /proc/filesystems. It lists what is built in or loaded; both
// that we ask for can't be modules. A /proc of processes only (subset=pid, as
// systemd's ProcSubset=pid makes it) has no such file: then the kernel itself is
// asked, and the mount table.
func fileSystem(name string) func(Config) error {
	return func(c Config) error {
		text, err := readProc(c.Root, "filesystems")
		if err != nil {
			return fileSystemWithoutList(name, err)
		}
		for line := range strings.Lines(text) {
			if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == name {
				return nil
			}
		}
		return fmt.Errorf("%w: %s is not in /proc/filesystems", ErrNotSupported, name)
	}
}

func fileSystemWithoutList(name string, unread error) error {
	fd, err := unix.Fsopen(name, unix.FSOPEN_CLOEXEC) // 5.2; with CAP_SYS_ADMIN
	if err == nil {
		unix.Close(fd)
		return nil
	}
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: the kernel knows no file system %s", ErrNotSupported, name)
	}
	for _, table := range []string{"/proc/thread-self/mountinfo", "/proc/1/mountinfo"} {
		if data, err := os.ReadFile(table); err == nil && bytes.Contains(data, []byte(" - "+name+" ")) {
			return nil
		}
	}
	advice := "look at the mount of /proc"
	if errors.Is(unread, fs.ErrNotExist) {
		advice = "this /proc shows processes only (mounted with subset=pid, as by ProcSubset=pid of a unit), or is none: mount a whole one (mount -t proc proc /proc)"
	}
	return fmt.Errorf("read the known file systems: %w, and fsopen says %w: %s", unread, err, advice)
}
