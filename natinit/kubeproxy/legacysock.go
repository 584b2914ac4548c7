package kubeproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
)

// maxLegacyTable bounds what is copied out of the kernel: about 200,000 rules.
const maxLegacyTable = 64 << 20

// The socket options of both families (uapi/linux/netfilter_ipv4/ip_tables.h
// and netfilter_ipv6/ip6_tables.h).
const (
	optGetInfo    = 64
	optGetEntries = 65
)

// legacyInfo is struct ipt_getinfo, and ip6t_getinfo.
type legacyInfo struct {
	Name       [32]byte
	ValidHooks uint32
	HookEntry  [5]uint32 // where each built-in chain begins, in bytes
	Underflow  [5]uint32
	NumEntries uint32
	Size       uint32 // of all entries, in bytes
}

// legacyTable is a table as the kernel hands it out: entries of variable size,
// one after the other. Close it after use.
type legacyTable struct {
	layout  legacyLayout
	hooks   map[int]bool // offsets at which built-in chains begin
	entries []byte
	mapped  []byte // holds entries; nil in tests
}

func (t legacyTable) close() {
	if t.mapped != nil {
		_ = unix.Munmap(t.mapped)
	}
}

// legacySocket asks for the tables of a family.
type legacySocket struct {
	legacyLayout
	fd, level int
}

// openLegacy opens a socket. Any of the family takes these options: a raw one,
// as iptables uses, would need CAP_NET_RAW as well. Close its fd.
func openLegacy(fam family) (legacySocket, error) {
	s, domain := legacySocket{legacyLayout: layout4, level: unix.SOL_IP}, unix.AF_INET
	if fam == ip6 {
		s.legacyLayout, s.level, domain = layout6, unix.SOL_IPV6, unix.AF_INET6
	}
	var err error
	s.fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	return s, os.NewSyscallError("socket", err)
}

func (s legacySocket) info(table string) (info legacyInfo, err error) {
	copy(info.Name[:], table)
	size := uint32(unsafe.Sizeof(info))
	return info, getsockopt(s.fd, s.level, optGetInfo, unsafe.Pointer(&info), &size)
}

// read copies a table out of the kernel. It asks again when the table has
// changed its size between the two questions (EAGAIN).
func (s legacySocket) read(table string) (legacyTable, error) {
	for range 5 {
		info, err := s.info(table)
		if err != nil {
			return legacyTable{}, err
		}
		if info.Size > maxLegacyTable {
			return legacyTable{}, fmt.Errorf("%d MiB are too much to read", info.Size>>20)
		}
		// struct ipt_get_entries: name, size, four bytes of padding, entries.
		// All at once is the only way to have them, and they can be many MiB:
		// too much to leave to the collector.
		const header = 40
		buf, err := unix.Mmap(-1, 0, header+int(info.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return legacyTable{}, os.NewSyscallError("mmap", err)
		}
		copy(buf, table)
		binary.NativeEndian.PutUint32(buf[32:], info.Size)
		size := uint32(len(buf))
		t := legacyTable{layout: s.legacyLayout, hooks: make(map[int]bool), entries: buf[header:], mapped: buf}
		if err := getsockopt(s.fd, s.level, optGetEntries, unsafe.Pointer(&buf[0]), &size); err != nil {
			t.close()
			if errors.Is(err, unix.EAGAIN) {
				continue
			}
			return legacyTable{}, err
		}
		for hook, offset := range info.HookEntry {
			if info.ValidHooks&(1<<hook) != 0 {
				t.hooks[int(offset)] = true
			}
		}
		return t, nil
	}
	return legacyTable{}, errInterrupted
}

func getsockopt(fd, level, option int, value unsafe.Pointer, size *uint32) error {
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(value), uintptr(unsafe.Pointer(size)), 0)
	if errno != 0 {
		return privileges.Refused("read", "a table of iptables-legacy", errno, unix.CAP_NET_ADMIN)
	}
	return nil
}
