package boot

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/vm/kube"
	"golang.org/x/sys/unix"
)

// before has what was on the disk before firsthop came.
const before = "/var/lib/vm-before"

// greeted and refused are what kubelet may have seen.
func greeted(saw string) bool { return saw == greeting }
func refused(saw string) bool { return strings.HasPrefix(saw, "dial tcp "+vip) }

// TestBefore is for a system that has never seen firsthop.
func TestBefore(t *testing.T) {
	needsSystem(t)
	wantKubelet(t, refused) // or else the stand-in shows nothing
	if got := kube.Visit(server); got != greeting {
		t.Fatalf("the stand-in API server says %q", got)
	}
	if err := os.WriteFile(before, []byte(strings.Join(onDisk(t), "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	unix.Sync() // of the list only: install comes after it, and must see to its own files
}

// TestInstall comes after TestBefore, in the same boot.
func TestInstall(t *testing.T) {
	needsSystem(t)

	addresses := []string{"--service-ips", vip, "--endpoints", servers}
	firsthop(t, append([]string{"install"}, addresses...)...)
	wantState(t, "is-enabled", unit, "enabled")
	if got := attached(t); len(got) > 0 || greeted(kube.Visit(vip)) {
		t.Errorf("install touched traffic: %q", got)
	}

	firsthop(t, append([]string{"init"}, addresses...)...)
	if got := kube.Visit(vip); got != greeting {
		t.Errorf("after init the Service IP says %q", got)
	}
}

// TestBoot is for a system in which firsthop was installed before this boot.
func TestBoot(t *testing.T) {
	needsSystem(t)
	wantKubelet(t, greeted)
	wantState(t, "is-enabled", unit, "enabled")
	wantState(t, "is-active", unit, "active")
	if got := property(t, unit, "Result"); got != "success" {
		t.Errorf("%s: result %q", unit, got)
	}
	ended, started := microseconds(t, unit, "ExecMainExitTimestampMonotonic"), microseconds(t, "kubelet.service", "ExecMainStartTimestampMonotonic")
	if property(t, "firsthop-twin.service", "ConditionResult") == "yes" {
		t.Logf("a start alone takes %d µs in this boot, all of %s %d", runtimeOf(t, "firsthop-twin.service"), unit, runtimeOf(t, unit))
	}
	t.Logf("%s ran from %d to %d µs of the boot, kubelet started at %d", unit, microseconds(t, unit, "ExecMainStartTimestampMonotonic"), ended, started)
	if ended > started {
		t.Error("kubelet was started before firsthop was done")
	}
	if !slices.Contains(strings.Fields(property(t, "kubelet.service", "After")), unit) {
		t.Error("kubelet is not ordered after firsthop")
	}

	mounts := bpffsMounts(t)
	if len(mounts) != 1 || !strings.HasPrefix(mounts[0], "/sys/fs/bpf ") {
		t.Fatalf("mounts of a bpffs: %q, want one, on /sys/fs/bpf", mounts)
	}
	_, options, _ := strings.Cut(mounts[0], " ")
	for _, want := range []string{"nosuid", "nodev", "noexec", "mode=700"} {
		if !slices.Contains(strings.Split(options, ","), want) {
			t.Errorf("the bpffs is mounted %s, without %s", options, want)
		}
	}
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system"} {
		if _, err := os.Lstat(dir + "/sys-fs-bpf.mount"); err == nil {
			t.Errorf("%s has a sys-fs-bpf.mount: systemd refuses one", dir)
		}
	}

	journal, _ := run(t, "journalctl", "--boot", "--no-pager", "--output=cat", "--unit="+unit)
	t.Logf("journal:\n%s", journal)
	for _, want := range []string{vip, server} {
		if !strings.Contains(journal, want) {
			t.Errorf("the journal's report does not name %s", want)
		}
	}
	for _, bad := range []string{"Unknown key", "Failed to parse", "ordering cycle"} {
		if all, _ := run(t, "journalctl", "--boot", "--no-pager", "--output=cat", "--grep="+bad); strings.Contains(all, "firsthop") {
			t.Errorf("systemd complains: %s", all)
		}
	}

	firsthop(t, "status")
	if got := kube.Visit(vip); got != greeting {
		t.Errorf("the Service IP says %q", got)
	}
}

// TestBPFFSWasUnmounted shows that the bpffs which TestBoot saw was firsthop's own, as where a systemd mounts none.
func TestBPFFSWasUnmounted(t *testing.T) {
	needsSystem(t)
	if got := property(t, "no-bpffs.service", "Result"); got != "success" || microseconds(t, "no-bpffs.service", "ExecMainExitTimestampMonotonic") == 0 {
		t.Errorf("no-bpffs.service: %q", got)
	}
	journal, _ := run(t, "journalctl", "--boot", "--no-pager", "--output=cat", "--unit="+unit)
	if !strings.Contains(journal, "mount bpffs at /sys/fs/bpf") {
		t.Errorf("firsthop does not say that it mounted a bpffs:\n%s", journal)
	}
}

// TestAllButOneMoved is for a boot in which one of the API servers that were known before is where it was.
func TestAllButOneMoved(t *testing.T) {
	needsSystem(t)
	if saw := kube.Visit("192.0.2.11:6443"); saw == greeting {
		t.Fatal("the API server has not moved")
	}
	for range 12 { // by chance one in three would do, if the others were still served
		if saw := kube.Visit(vip); saw != greeting {
			t.Errorf("the Service IP says %q", saw)
		}
	}
}

func microseconds(t *testing.T, unit, name string) uint64 {
	t.Helper()
	text := property(t, unit, name)
	us, err := strconv.ParseUint(text, 10, 64)
	if err != nil || us == 0 {
		t.Errorf("%s of %s: %q", name, unit, text)
	}
	return us
}
