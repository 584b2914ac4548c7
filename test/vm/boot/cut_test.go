package boot

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/test/vm/wire"
)

const installed = "/opt/firsthop/bin/firsthop"

// TestAfterCut is for the boot after power was cut in the middle of something, whatever of it came to the disk.
func TestAfterCut(t *testing.T) {
	needsSystem(t)
	if got := property(t, unit, "ActiveState"); got == "failed" {
		journal, _ := run(t, "journalctl", "--boot", "--no-pager", "--output=cat", "--unit="+unit)
		t.Errorf("%s failed:\n%s", unit, journal)
	}
	enabled, _ := run(t, "systemctl", "is-enabled", unit)
	t.Logf("%s: %s", unit, enabled)
	whole, err := os.ReadFile(filepath.Join(wire.SystemDir, "firsthop"))
	if err != nil {
		t.Fatal(err)
	}
	copied, err := os.ReadFile(installed)
	switch {
	case os.IsNotExist(err):
		t.Logf("%s did not come to the disk", installed)
		wantKubelet(t, refused)
	case err != nil || !bytes.Equal(copied, whole):
		t.Errorf("%s has %d bytes, unlike the %d of the original: %v", installed, len(copied), len(whole), err)
	case enabled == "enabled":
		wantKubelet(t, greeted)
	}
	firsthop(t, "uninstall", "--force")
	noTrace(t)
}

// TestCutInstall leaves install at work when something is there that it makes, and then the power is cut.
func TestCutInstall(t *testing.T) {
	needsSystem(t)
	leaveAt(t, "install")
}

// TestInstallAgain repairs by a second install what a cut has left of the first.
func TestInstallAgain(t *testing.T) {
	needsSystem(t)
	firsthop(t, "install", "--service-ips", vip, "--endpoints", servers)
	wantState(t, "is-enabled", unit, "enabled")
}

// TestCutInit comes after TestBoot, in the same boot. Without its bpffs and its file, init has all to do once more.
func TestCutInit(t *testing.T) {
	needsSystem(t)
	if err := unix.Unmount("/sys/fs/bpf", 0); err != nil {
		t.Fatal("unmount the bpffs:", err)
	}
	for end := time.Now().Add(time.Minute); len(attached(t)) > 0; time.Sleep(10 * time.Millisecond) { // the kernel detaches later
		if time.Now().After(end) {
			t.Fatalf("still attached: %q", attached(t))
		}
	}
	for _, path := range []string{"/run/firsthop/changes.json", "/var/lib/firsthop/apiserver.json"} {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	leaveAt(t, "init")
}

// leaveAt starts a command and returns, while it still runs, when the file FIRSTHOP_VM_CUT_AT is there, or a file that
// begins with it: one that is being written has a name of its own.
func leaveAt(t *testing.T, command string) {
	t.Helper()
	at := os.Getenv("FIRSTHOP_VM_CUT_AT")
	if there(t, at) != nil {
		t.Fatalf("%s is there before", there(t, at))
	}
	cmd := exec.Command(filepath.Join(wire.SystemDir, "firsthop"), command, "--service-ips", vip, "--endpoints", servers)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // or else it would end with the test
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if found := there(t, at); found != nil {
			t.Logf("leaving %s at %s", command, strings.Join(found, ", "))
			return
		}
		select {
		case err := <-ended:
			if there(t, at) == nil {
				t.Fatalf("%s ended without making %s: %v", command, at, err)
			}
		case <-tick.C:
		}
	}
}

func there(t *testing.T, prefix string) []string {
	t.Helper()
	found, err := filepath.Glob(prefix + "*")
	if err != nil {
		t.Fatal(err)
	}
	return found
}
