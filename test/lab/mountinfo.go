package lab

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// readMounts lists the mounts of this process's mount namespace in the kernel's order: later ones lie above earlier
// ones. One read is several of the kernel's, between which a mount may be missed when others come or go, so it reads
// until it has read the same twice.
func readMounts() (mounts []*mountinfo.Info, err error) {
	for range 10 {
		last := mounts
		if mounts, err = mountinfo.GetMounts(nil); err != nil || last != nil && slices.EqualFunc(last, mounts, sameMount) {
			break
		}
	}
	return mounts, err
}

func sameMount(a, b *mountinfo.Info) bool { return *a == *b }

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
		if isBelow(m, dir) {
			return fmt.Errorf("remove %s: something is still mounted on %s", dir, m.Mountpoint)
		}
	}
	return os.RemoveAll(dir)
}

// isBelow tells whether the mount point is dir or in it.
func isBelow(m *mountinfo.Info, dir string) bool {
	return m.Mountpoint == dir || strings.HasPrefix(m.Mountpoint, dir+"/")
}

// unmountBelow unmounts everything at and below dir, the topmost first.
func unmountBelow(dir string) error {
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if !isBelow(m, dir) {
			continue
		}
		// Detached: a process that still has a file open there must not keep the lab from being removed.
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}
