package boot

import (
	"os"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/vm/kube"
)

// Boots on a kernel that lacks what firsthop can't do without: a drop-in of the stage's sees to it.

// kubeProxyGreeting is what is seen of the stand-in kube-proxy through a Service IP.
const kubeProxyGreeting = "the stand-in kube-proxy"

// TestFallsBack is for a boot with a kube-proxy: firsthop leaves the node to it.
func TestFallsBack(t *testing.T) {
	needsSystem(t)
	wantState(t, "is-active", unit, "active")
	if result, code := property(t, unit, "Result"), property(t, unit, "ExecMainStatus"); result != "success" || code != "0" {
		t.Errorf("%s: result %q, exit code %s", unit, result, code)
	}
	wantReason(t, "connect4", "kube-proxy is on this node and stays in charge", "nothing is attached")
	wantUntouched(t)
	wantKubelet(t, func(saw string) bool { return saw == kubeProxyGreeting })
	wantState(t, "is-active", "kube-proxy.service", "active")
	if got := kube.Visit(vip); got != kubeProxyGreeting {
		t.Errorf("the Service IP says %q", got)
	}
	wantUndelayed(t)
}

// TestFailsLoudly is for a boot without kube-proxy: there is nothing to fall back to.
func TestFailsLoudly(t *testing.T) {
	needsSystem(t)
	wantState(t, "is-active", unit, "failed")
	const unsupported = "5" // of README's exit codes
	if code := property(t, unit, "ExecMainStatus"); code != unsupported {
		t.Errorf("%s: exit code %s, want %s", unit, code, unsupported)
	}
	wantReason(t, os.Getenv("FIRSTHOP_VM_LACKS"), "nothing to fall back to", "kube-proxy is not on this node")
	if state, _ := run(t, "systemctl", "is-system-running"); state != "degraded" {
		t.Errorf("the system is %s: no one would look", state)
	}
	wantUntouched(t)
	wantKubelet(t, refused)
	wantUndelayed(t)
}

// wantReason looks for words in what the boot unit wrote.
func wantReason(t *testing.T, words ...string) {
	t.Helper()
	journal, _ := run(t, "journalctl", "--boot", "--no-pager", "--output=cat", "--unit="+unit)
	t.Logf("journal:\n%s", journal)
	for _, want := range words {
		if !strings.Contains(journal, want) {
			t.Errorf("the journal does not say %q", want)
		}
	}
}

// wantUntouched wants nothing of ours in the kernel.
func wantUntouched(t *testing.T) {
	t.Helper()
	if got := attached(t); len(got) > 0 {
		t.Errorf("programs: %q", got)
	}
	if got := pins(t); len(got) > 0 {
		t.Errorf("pins: %q", got)
	}
}

// wantUndelayed compares the boot unit with one that does nothing and was started right before it, so that it has paid for
// reading the program from the disk. The boot unit may take some time more, but must not wait for anything.
func wantUndelayed(t *testing.T) {
	t.Helper()
	const twin, few = "firsthop-twin.service", 3
	ours, least := runtimeOf(t, unit), runtimeOf(t, twin)
	t.Logf("%s ran for %d µs, one that does nothing for %d", unit, ours, least)
	if ours > few*least {
		t.Errorf("%s ran for %d µs, one that does nothing for %d", unit, ours, least)
	}
	if ended, started := microseconds(t, unit, "ExecMainExitTimestampMonotonic"), microseconds(t, "kubelet.service", "ExecMainStartTimestampMonotonic"); ended > started {
		t.Error("kubelet was started before firsthop was done")
	}
}

func runtimeOf(t *testing.T, unit string) uint64 {
	t.Helper()
	return microseconds(t, unit, "ExecMainExitTimestampMonotonic") - microseconds(t, unit, "ExecMainStartTimestampMonotonic")
}
