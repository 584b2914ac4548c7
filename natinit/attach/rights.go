package attach

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// MayRemove says which capability a removal lacks. A pin is a file, which its
// owner can remove with none: without this a removal would take away what it may
// unlink, and fail at what it may not detach.
func MayRemove() error {
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read this process's capabilities: %w", err)
	}
	if data[0].Effective>>unix.CAP_SYS_ADMIN&1 == 0 {
		return fmt.Errorf("remove programs and pins: CAP_SYS_ADMIN is missing, by which they are detached and looked up: %w: run as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN", unix.EPERM)
	}
	return nil
}
