package units

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInMemory looks through real file systems: tmpfs, overlays over them, and a loop device whose file is in memory.
func TestInMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	if os.Getenv(inOwnMounts) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestInMemory$", "-test.v")
		cmd.Env = append(os.Environ(), inOwnMounts+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // with which Go makes all mounts private
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dir := t.TempDir()
	mk := func(name string) string {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	mount := func(source, at, kind, options string) {
		t.Helper()
		if err := unix.Mount(source, at, kind, 0, options); err != nil {
			t.Fatalf("mount %s at %s with %s: %v", kind, at, options, err)
		}
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	}
	memory := mk("memory")
	mount("tmpfs", memory, "tmpfs", "size=64m")
	ram := mk("ram")
	mount("ramfs", ram, "ramfs", "")
	lower, over := mk("lower"), mk("over")
	for _, d := range []string{"u", "w", "u,2", "w2"} {
		mk("memory/" + d)
	}
	mount("overlay", over, "overlay", "lowerdir="+lower+",upperdir="+memory+"/u,workdir="+memory+"/w")
	odd := mk("odd")
	mount("overlay", odd, "overlay", "lowerdir="+lower+",upperdir="+memory+"/u\\,2,workdir="+memory+"/w2")
	frozen := mk("frozen")
	mount("overlay", frozen, "overlay", "lowerdir="+lower+":"+mk("lower2"))
	bound := mk("bound")
	if err := unix.Mount(memory+"/u", bound, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(bound, unix.MNT_DETACH) })
	for at, want := range map[string]string{
		memory:           "tmpfs",
		memory + "/u":    "tmpfs",
		ram:              "ramfs",
		over:             "an overlay that writes to " + memory + "/u, a file system in memory (tmpfs)",
		odd:              "an overlay that writes to " + memory + "/u,2, a file system in memory (tmpfs)",
		frozen:           "",
		bound:            "tmpfs",
		dir + "/nothing": "",
		"/proc":          "",
	} {
		if got := inMemory("", at); !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: %q, want %q", at, got, want)
		}
	}
}

// TestDiskInMemory reads trees as /sys/dev/block has them.
func TestDiskInMemory(t *testing.T) {
	sys := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		p := filepath.Join(sys, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, disk := range []string{"zram0", "ram1", "sda", "loop0", "dm-0", "dm-1"} {
		write(disk+"/size", "1")
	}
	write("loop0/loop/backing_file", "/dev/shm/overlay (deleted)\n") // a tmpfs everywhere
	for link, to := range map[string]string{"dm-0/slaves/sda": "sda", "dm-1/slaves/loop0": "loop0", "dm-1/slaves/sda": "sda", "252:0": "zram0"} {
		if err := os.MkdirAll(filepath.Join(sys, filepath.Dir(link)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(sys, to), filepath.Join(sys, link)); err != nil {
			t.Fatal(err)
		}
	}
	for disk, want := range map[string]string{"252:0": "zram0", "ram1": "ram1", "sda": "", "loop0": "loop0", "dm-0": "", "dm-1": "loop0", "none": ""} {
		if got := diskInMemory("", filepath.Join(sys, disk), deepest); got != want {
			t.Errorf("%s: %q, want %q", disk, got, want)
		}
	}
}

const inOwnMounts = "FH_TEST_OWN_MOUNTS"
