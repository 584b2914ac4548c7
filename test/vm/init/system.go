package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/vm/wire"
)

// diskWait is for the kernel to find a disk after its driver was loaded.
const diskWait = 20 * time.Second

// startSystem makes PID 1 that of the system on a disk. It returns only if it can't.
func startSystem(m wire.Manifest) error {
	const root = "/system"
	if err := mount("devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"); err != nil {
		return err
	}
	for _, path := range m.Modules {
		if err := loadModule(path); err != nil {
			return err
		}
	}
	for end := time.Now().Add(diskWait); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(m.System); err == nil {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("wait for the disk %s: not there after %v", m.System, diskWait)
		}
	}
	if err := mount(m.System, root, "ext4", 0, ""); err != nil {
		return err
	}
	// systemd leaves a /run that is mounted as it is.
	if err := mount("tmpfs", root+"/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	if err := os.CopyFS(root+"/run", os.DirFS(filepath.Join(wire.SystemDir, wire.SystemRun))); err != nil {
		return err
	}
	ours := filepath.Join(root, wire.SystemDir)
	if err := os.MkdirAll(ours, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(wire.SystemDir, ours, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", wire.SystemDir, err)
	}
	if err := unix.Unmount("/dev", unix.MNT_DETACH); err != nil {
		return err
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	const init = "/sbin/init"
	return fmt.Errorf("start %s: %w", init, unix.Exec(init, []string{init}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}))
}

// jobsOfSystem runs the jobs as a service of the system, and ends it.
func jobsOfSystem() error {
	m, err := readManifest(filepath.Join(wire.SystemDir, wire.ManifestPath))
	if err != nil {
		return err
	}
	if err := runJobs(m, nil); err != nil {
		return err
	}
	if m.Cut {
		return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // which writes nothing back, unlike reboot(8)
	}
	return exec.Command("/bin/systemctl", "--no-block", "poweroff").Run()
}
