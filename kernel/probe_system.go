package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/kernel/privileges"
)

func probeCapBPF(Config) error {
	p, err := privileges.Read()
	if err != nil {
		return err
	}
	if !p.HasCapBPF() {
		return fmt.Errorf("%w: the newest capability is number %d, CAP_BPF is %d", ErrNotSupported, p.LastCap, unix.CAP_BPF)
	}
	return nil
}

// probeIntoCgroup asks for a process in a cgroup whose descriptor is none, so
// that none is made: a kernel that knows the flag says EBADF, older ones EINVAL
// or E2BIG (commit ef2c41cf38a7, 5.7), or ENOSYS before 5.3.
func probeIntoCgroup(Config) error {
	attr := struct {
		flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
	}{flags: unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: noDescriptor}
	_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	switch errno {
	case unix.EBADF:
		return nil
	case unix.EINVAL, unix.E2BIG:
		return fmt.Errorf("%w: clone3 with CLONE_INTO_CGROUP: %w", ErrNotSupported, errno)
	case unix.ENOSYS: // some seccomp profiles say so as well: the C library then uses clone
		return fmt.Errorf("%w: clone3: %w", ErrNotSupported, errno)
	}
	return fmt.Errorf("clone3 with CLONE_INTO_CGROUP: %w", errno)
}

func probeSONetnsCookie(Config) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	switch _, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOPROTOOPT):
		return fmt.Errorf("%w: read SO_NETNS_COOKIE: %w", ErrNotSupported, err)
	default:
		return fmt.Errorf("read SO_NETNS_COOKIE: %w", err)
	}
}

// probeSocketIterator looks for the kfunc bpf_sock_destroy in the kernel's
// type information. Only its names are searched: btf.LoadSpec takes 185 ms for
// all types. A kernel without
// type information can't run iterators at all.
func probeSocketIterator(c Config) error {
	path := filepath.Join("/", c.Root, "sys/kernel/btf/vmlinux")
	blob, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && c.Root != "" {
		blob, err = os.ReadFile("/sys/kernel/btf/vmlinux")
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat("/sys/kernel"); err != nil {
			return errors.New("read the kernel's type information: /sys is not mounted")
		}
		return fmt.Errorf("%w: the kernel has no type information (/sys/kernel/btf/vmlinux)", ErrNotSupported)
	}
	if err != nil {
		return fmt.Errorf("read the kernel's type information: %w", err)
	}
	names, err := btfNames(blob)
	if err != nil {
		return err
	}
	var missing []string
	for _, name := range []string{"bpf_sock_destroy", "bpf_iter_tcp", "bpf_iter_udp"} {
		if !bytes.Contains(names, []byte("\x00"+name+"\x00")) {
			missing = append(missing, name)
		}
	}
	if missing != nil {
		return fmt.Errorf("%w: the kernel's type information lacks %s", ErrNotSupported, strings.Join(missing, ", "))
	}
	return nil
}

// btfNames returns the string section of a BTF blob (struct btf_header).
func btfNames(blob []byte) ([]byte, error) {
	if len(blob) < 24 || binary.LittleEndian.Uint16(blob) != 0xeb9f {
		return nil, errors.New("read the kernel's type information: it is no BTF")
	}
	header := uint64(binary.LittleEndian.Uint32(blob[4:]))
	start := header + uint64(binary.LittleEndian.Uint32(blob[16:]))
	end := start + uint64(binary.LittleEndian.Uint32(blob[20:]))
	if start > end || end > uint64(len(blob)) {
		return nil, errors.New("read the kernel's type information: its strings lie outside of it")
	}
	return blob[start:end], nil
}
