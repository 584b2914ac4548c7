package natinit

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// NetnsCookie is the cookie of the calling thread's network namespace, as BPF
// programs know it. It needs SO_NETNS_COOKIE (Linux 5.14).
func NetnsCookie() (uint64, error) {
	const soNetnsCookie = 71 // SO_NETNS_COOKIE
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, soNetnsCookie)
	if err != nil {
		return 0, fmt.Errorf("read the network namespace's cookie (SO_NETNS_COOKIE, Linux 5.14): %w", err)
	}
	return cookie, nil
}
