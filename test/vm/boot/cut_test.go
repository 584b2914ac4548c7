package boot

import (
	"bytes"
	"fmt"
	"maps"
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
	leaveAt(t, "install", servers)
}

// TestInstallAgain repairs by a second install what a cut has left of the first.
func TestInstallAgain(t *testing.T) {
	needsSystem(t)
	firsthop(t, "install", "--service-ips", vip, "--endpoints", servers)
	wantState(t, "is-enabled", unit, "enabled")
}

// TestCutInit comes after TestBoot, in the same boot. Without its bpffs and its list of changes, init has all to do once
// more. The saved addresses stay, as the next boot needs them; other ones are given, so that they are saved again.
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
	if err := os.Remove("/run/firsthop/changes.json"); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	fewer, _, _ := strings.Cut(servers, ",")
	if saved, err := os.ReadFile("/var/lib/firsthop/apiserver.json"); err == nil && !strings.Contains(string(saved), "192.0.2.12") {
		fewer = servers
	}
	leaveAt(t, "init", fewer)
}

// leaveAt starts a command and returns, while it still runs, when the file FIRSTHOP_VM_CUT_AT comes or changes, or one
// whose name has it in it: a file that is being written has a name of its own.
func leaveAt(t *testing.T, command, endpoints string) {
	t.Helper()
	at := os.Getenv("FIRSTHOP_VM_CUT_AT")
	before := there(t, at)
	cmd := exec.Command(filepath.Join(wire.SystemDir, "firsthop"), command, "--service-ips", vip, "--endpoints", endpoints)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // or else it would end with the test
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if found := there(t, at); !maps.Equal(found, before) {
			t.Logf("leaving %s at %v, which was %v", command, found, before)
			return
		}
		select {
		case err := <-ended:
			if maps.Equal(there(t, at), before) {
				t.Fatalf("%s ended without making %s: %v", command, at, err)
			}
		case <-tick.C:
		}
	}
}

// there are the files that a path or its beginning names, those among them that are being written, and what tells each
// from its successor.
func there(t *testing.T, prefix string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, pattern := range []string{prefix + "*", filepath.Dir(prefix) + "/.*" + filepath.Base(prefix) + "*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			var st unix.Stat_t
			if unix.Lstat(p, &st) == nil {
				found[p] = fmt.Sprint(st.Dev, st.Ino)
			}
		}
	}
	return found
}
