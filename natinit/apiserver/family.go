package apiserver

import (
	"bytes"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// NoIPv6 says why nothing in this network namespace can use IPv6, "" if it
// can: with the kernel parameter ipv6.disable=1 there are no sockets, and where
// net.ipv6.conf.all.disable_ipv6 is set there are no addresses, not even ::1.
func NoIPv6() string {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return "the kernel has no IPv6 (ipv6.disable=1, or built without it)"
	}
	if err == nil {
		unix.Close(fd)
	}
	addresses, err := os.ReadFile("/proc/thread-self/net/if_inet6")
	if err != nil || len(bytes.TrimSpace(addresses)) > 0 {
		return ""
	}
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	if err == nil && strings.TrimSpace(string(off)) == "1" {
		return "IPv6 is switched off (net.ipv6.conf.all.disable_ipv6=1)"
	}
	return ""
}
