package wire

import (
	"fmt"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What ETHTOOL_S* switches, of linux/ethtool.h.
const (
	setRxChecksum = 0x15
	setTxChecksum = 0x17
	setTSO        = 0x1f
	setGSO        = 0x24
	setGRO        = 0x2c
)

// offload switches what a device of a machine does for the kernel.
func offload(t testing.TB, m machine, device string, on bool, which ...uint32) {
	t.Helper()
	must(t, m.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, w := range which {
			value := struct{ cmd, data uint32 }{w, 0}
			if on {
				value.data = 1
			}
			request := struct {
				name [unix.IFNAMSIZ]byte
				data unsafe.Pointer
				rest [16]byte
			}{data: unsafe.Pointer(&value)}
			copy(request.name[:], device)
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
				return fmt.Errorf("set offload %#x of %s: %w", w, device, errno)
			}
		}
		return nil
	}))
}

// offloads switches the offloads of all devices of the bench, but for loopback: without, all checksums are computed by who
// sends and verified by who receives, and no packet is larger than its device's MTU.
func (b *bench) offloads(t testing.TB, on bool, which ...uint32) {
	t.Helper()
	for _, m := range []machine{b.node, b.router, b.client, b.neighbour, b.peer, b.routed, b.bridged} {
		var names []string
		must(t, m.Link(func(nl *netlink.Handle) error {
			all, err := nl.LinkList()
			for _, l := range all {
				if l.Type() == "veth" {
					names = append(names, l.Attrs().Name)
				}
			}
			return err
		}))
		for _, name := range names {
			offload(t, m, name, on, which...)
		}
	}
}
