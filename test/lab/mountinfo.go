package lab

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is one line of /proc/self/mountinfo, in the kernel's order: later ones lie above earlier ones.
type mount struct {
	root, point, fstype string
}

// readMounts lists the mounts of this process's mount namespace. One read is several of the kernel's, between which a
// mount may be missed when others come or go, so it reads until it has read the same twice.
func readMounts() (mounts []mount, err error) {
	for range 10 {
		last := mounts
		if mounts, err = readMountinfo("/proc/self/mountinfo"); err != nil || last != nil && slices.Equal(last, mounts) {
			break
		}
	}
	return mounts, err
}

func readMountinfo(path string) ([]mount, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var mounts []mount
	for line := range strings.Lines(string(data)) {
		// 36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw: any number of tags before the dash.
		before, after, ok := strings.Cut(line, " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 6 || len(tail) < 1 {
			return nil, fmt.Errorf("read %s: cannot parse %q", path, line)
		}
		mounts = append(mounts, mount{unescape(head[3]), unescape(head[4]), tail[0]})
	}
	return mounts, nil
}

// unescape undoes the kernel's octal escapes of blank, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// removeDir removes a directory with everything in it, once nothing is mounted at or below it any more. A test may have
// bound the machine's own directories there, so nothing is removed as long as one mount remains.
func removeDir(dir string) error {
	if err := unmountBelow(dir); err != nil {
		return err
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m.isBelow(dir) {
			return fmt.Errorf("remove %s: something is still mounted on %s", dir, m.point)
		}
	}
	return os.RemoveAll(dir)
}

// isBelow tells whether the mount point is dir or in it.
func (m mount) isBelow(dir string) bool { return m.point == dir || strings.HasPrefix(m.point, dir+"/") }

// unmountBelow unmounts everything at and below dir, the topmost first.
func unmountBelow(dir string) error {
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if !m.isBelow(dir) {
			continue
		}
		// Detached: a process that still has a file open there must not keep the lab from being removed.
		if err := unix.Unmount(m.point, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.point, err))
		}
	}
	return errors.Join(errs...)
}
