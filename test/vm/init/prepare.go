package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/vm/wire"
)

// prepare makes a machine of a kernel. It goes on after errors and returns them: which of them matter, tests say.
func prepare(m wire.Manifest) (notes []error) {
	note := func(err error) {
		if err != nil {
			notes = append(notes, err)
		}
	}
	note(moveRoot())
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	note(mount("proc", "/proc", "proc", safe, ""))
	note(mount("sysfs", "/sys", "sysfs", safe, ""))
	note(mount("devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"))
	note(mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"))
	note(mount("tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"))
	for _, path := range m.Modules {
		note(loadModule(path))
	}
	note(mountCgroups(m.Cgroups))
	note(unix.Sethostname([]byte("vm")))
	note(setUp("lo"))
	// What distributions set: a machine's root may open many files.
	note(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 16, Max: 1 << 19}))
	return notes
}

// moveRoot makes the root a mount like any other: pivot_root(2), which containers use, refuses the kernel's very first one.
func moveRoot() error {
	const at = "/.root"
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/", at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the root: %w", err)
	}
	if err := unix.Chdir(at); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, target, err)
	}
	return nil
}

// mountCgroups mounts the hierarchies as systemd does: v2 alone, both, or v1 alone.
func mountCgroups(mode string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	const top = "/sys/fs/cgroup"
	switch mode {
	case "v2":
		return mount("cgroup2", top, "cgroup2", flags, "")
	case "hybrid", "v1":
	default:
		return fmt.Errorf("mount cgroups: unknown mode %q", mode)
	}
	errs := []error{mount("tmpfs", top, "tmpfs", flags, "mode=0755")}
	for _, controller := range []string{"cpu,cpuacct", "memory", "net_cls,net_prio", "pids"} {
		errs = append(errs, mount("cgroup", filepath.Join(top, controller), "cgroup", flags, controller))
	}
	if mode == "hybrid" {
		errs = append(errs, mount("cgroup2", filepath.Join(top, "unified"), "cgroup2", flags, ""))
	}
	return errors.Join(errs...)
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", filepath.Base(path), err)
	}
	return nil
}

// setUp sets a network interface up.
func setUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}
