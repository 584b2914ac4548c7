package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/lab"
	"github.com/firsthop/firsthop/test/vm/kube"
	"github.com/firsthop/firsthop/test/vm/wire"
)

const unit = "firsthop-init.service"

// needsSystem leaves out a test that is not for this machine.
func needsSystem(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(wire.SystemDir, wire.ManifestPath)); err != nil {
		t.Skip("needs a virtual machine: make test-boot")
	}
}

// run runs a program and returns what it printed and its exit code.
func run(t *testing.T, name string, args ...string) (string, int) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", name, err)
	}
	if exit != nil {
		return strings.TrimSpace(string(out)), exit.ExitCode()
	}
	return strings.TrimSpace(string(out)), 0
}

// firsthop runs a command of the program under test, which must be done.
func firsthop(t *testing.T, args ...string) string {
	t.Helper()
	out, code := run(t, filepath.Join(wire.SystemDir, "firsthop"), args...)
	t.Logf("firsthop %s: %d\n%s", strings.Join(args, " "), code, out)
	if code != 0 {
		t.Errorf("firsthop %s: exit code %d", strings.Join(args, " "), code)
	}
	return out
}

// property asks systemd for one of a unit's.
func property(t *testing.T, unit, name string) string {
	t.Helper()
	out, code := run(t, "systemctl", "show", "--property="+name, "--value", unit)
	if code != 0 {
		t.Fatalf("systemctl show %s: %s", unit, out)
	}
	return out
}

// wantState compares what systemctl says of a unit.
func wantState(t *testing.T, question, unit, want string) {
	t.Helper()
	if got, _ := run(t, "systemctl", question, unit); got != want {
		t.Errorf("systemctl %s %s: %q, want %q", question, unit, got, want)
	}
}

func wantKubelet(t *testing.T, want func(string) bool) {
	t.Helper()
	saw, err := os.ReadFile(kubeletSaw)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("kubelet's first connection: %s", saw)
	if !want(string(saw)) {
		t.Errorf("kubelet's first connection gave %q", saw)
	}
}

// bpffsMounts are the options of every mount of a bpffs, and where it is.
func bpffsMounts(t *testing.T) []string {
	t.Helper()
	var mounts []string
	for _, m := range mounted(t, "bpf") {
		mounts = append(mounts, m.at+" "+m.options)
	}
	return mounts
}

// attached lists the programs at the hooks of the root cgroup, without systemd's own on its services.
func attached(t *testing.T) []string {
	t.Helper()
	dir := cgroup2Root(t)
	defer dir.Close()
	return lab.AttachedPrograms(t, dir)
}

// pins lists what is in the bpffs, but for what a kernel puts there itself.
func pins(t *testing.T) (names []string) {
	t.Helper()
	if _, err := os.Stat("/sys/fs/bpf"); err != nil {
		return nil // a kernel without
	}
	err := filepath.WalkDir("/sys/fs/bpf", func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != "/sys/fs/bpf" && !strings.HasSuffix(path, ".debug") {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// changing is what a system writes to by itself.
var changing = []string{"/var/log", "/var/lib/systemd", "/var/lib/dbus", "/var/cache", "/var/tmp", "/tmp", "/etc/.updated", "/var/.updated", before, kube.Dir}

// onDisk lists all files of the root's disk, with mode and size.
func onDisk(t *testing.T) (files []string) {
	t.Helper()
	var root unix.Stat_t
	if err := unix.Lstat("/", &root); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Dev != root.Dev || slices.Contains(changing, path) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		line := fmt.Sprintf("%s mode %o", path, st.Mode)
		if !d.IsDir() {
			line += fmt.Sprintf(" size %d", st.Size)
		}
		files = append(files, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
