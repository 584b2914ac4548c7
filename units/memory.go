package units

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

// deepest bounds how many layers (overlay on loop on overlay …) are looked through.
const deepest = 8

// inMemory says why what is written at a path of the host, reachable at `at`, is
// gone after a reboot; "" where it stays, as far as can be told:
//
//   - tmpfs and ramfs: systemd.volatile=, impermanence, PXE, an initramfs as root.
//   - overlay with an upper directory in memory: live images, overlayroot, COS.
//   - a disk in memory: zram, brd, or a loop device whose file is in memory, also
//     below device mapper (dracut's live images).
func inMemory(root, at string) string { return inMemoryAt(root, at, deepest) }

func inMemoryAt(root, at string, depth int) string {
	fd, err := unix.Open(at, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil || depth == 0 {
		return ""
	}
	defer unix.Close(fd)
	var sfs unix.Statfs_t
	var st unix.Stat_t
	if unix.Fstatfs(fd, &sfs) != nil || unix.Fstat(fd, &st) != nil {
		return ""
	}
	switch sfs.Type {
	case unix.TMPFS_MAGIC:
		return "a file system in memory (tmpfs)"
	case unix.RAMFS_MAGIC:
		return "a file system in memory (ramfs)"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return overlayInMemory(root, hostfs.MountOf(fd), depth)
	}
	dev := st.Dev
	if unix.Major(dev) == 0 { // btrfs and others number their own; the mount's source names the disk
		m := hostfs.MountOf(fd)
		var disk unix.Stat_t
		if m == nil || unix.Stat(filepath.Join("/", root, m.Source), &disk) != nil && unix.Stat(m.Source, &disk) != nil || disk.Mode&unix.S_IFMT != unix.S_IFBLK {
			return ""
		}
		dev = disk.Rdev
	}
	if name := diskInMemory(root, fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev)), depth); name != "" {
		return "a disk in memory (" + name + ")"
	}
	return ""
}

// overlayInMemory looks where an overlay writes to. The directory may be out of
// sight (of an initramfs): then its name has to do.
func overlayInMemory(root string, m *mountinfo.Info, depth int) string {
	if m == nil {
		return ""
	}
	upper := ""
	for option := range strings.SplitSeq(m.VFSOptions, ",") {
		if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
			upper = overlayEscapes.Replace(unescape(dir))
		}
	}
	if upper == "" {
		return "" // read-only, which is said elsewhere
	}
	for _, at := range []string{filepath.Join("/", root, upper), upper} {
		if _, err := os.Stat(at); err == nil {
			if why := inMemoryAt(root, at, depth-1); why != "" {
				return "an overlay that writes to " + upper + ", " + why
			}
			return ""
		}
	}
	for _, dir := range []string{"/run/", "/cow/", "/dev/shm/", "/tmp/"} {
		if strings.HasPrefix(upper, dir) {
			return "an overlay that writes to " + upper + ", which is in memory on live images"
		}
	}
	return ""
}

// overlayEscapes are what overlay itself wants escaped in a path, and keeps so.
var overlayEscapes = strings.NewReplacer(`\,`, ",", `\:`, ":", `\\`, `\`)

// unescape reads the octal escapes of a value in a mount table (seq_show_option in the kernel) or in fstab(5).
func unescape(s string) string {
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

// diskInMemory names the disk in memory that a block device is or stands on.
func diskInMemory(root, sys string, depth int) string {
	real, err := filepath.EvalSymlinks(sys)
	if err != nil || depth == 0 {
		return ""
	}
	name := filepath.Base(real)
	if strings.HasPrefix(name, "zram") || strings.HasPrefix(name, "ram") {
		return name
	}
	if file, err := os.ReadFile(filepath.Join(real, "loop/backing_file")); err == nil {
		at := strings.TrimSuffix(strings.TrimSpace(string(file)), " (deleted)")
		for _, at := range []string{filepath.Join("/", root, at), at, filepath.Dir(at)} {
			if _, err := os.Stat(at); err == nil {
				if inMemoryAt(root, at, depth-1) != "" {
					return name
				}
				return ""
			}
		}
		return ""
	}
	slaves, _ := os.ReadDir(filepath.Join(real, "slaves"))
	for _, s := range slaves {
		if found := diskInMemory(root, filepath.Join(real, "slaves", s.Name()), depth-1); found != "" {
			return found
		}
	}
	return ""
}
