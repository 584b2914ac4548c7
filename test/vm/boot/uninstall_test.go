package boot

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/vm/kube"
)

// Tests are run in the order of their files' names, so these come last.

// TestUninstall comes after TestBoot, in the same boot, and after all others.
func TestUninstall(t *testing.T) {
	needsSystem(t)
	firsthop(t, "uninstall", "--force")
	if saw := kube.Visit(vip); !refused(saw) {
		t.Errorf("after uninstall the Service IP says %q", saw)
	}
	noTrace(t)
}

// TestNoTrace is for a system in which firsthop was uninstalled before this boot.
func TestNoTrace(t *testing.T) {
	needsSystem(t)
	wantKubelet(t, refused)
	if saw := kube.Visit(vip); !refused(saw) {
		t.Errorf("the Service IP says %q", saw)
	}
	noTrace(t)
}

// noTrace compares the machine with what it was before firsthop came.
func noTrace(t *testing.T) {
	t.Helper()
	if got := property(t, unit, "LoadState"); got != "not-found" {
		t.Errorf("%s: %s", unit, got)
	}
	if got := attached(t); len(got) > 0 {
		t.Errorf("programs: %q", got)
	}
	if got := pins(t); len(got) > 0 {
		t.Errorf("pins: %q", got)
	}
	if _, err := os.Lstat("/run/firsthop"); err == nil {
		t.Error("/run/firsthop is still there")
	}
	for _, m := range mounted(t, "") {
		if strings.Contains(m.at, "firsthop") {
			t.Errorf("a %s is mounted at %s", m.fstype, m.at)
		}
	}
	data, err := os.ReadFile(before)
	if err != nil {
		t.Fatal(err)
	}
	was, is := strings.Split(string(data), "\n"), onDisk(t)
	slices.Sort(was)
	slices.Sort(is)
	for _, line := range is {
		if _, found := slices.BinarySearch(was, line); !found {
			t.Errorf("on the disk now: %s", line)
		}
	}
	for _, line := range was {
		if _, found := slices.BinarySearch(is, line); !found {
			t.Errorf("on the disk before: %s", line)
		}
	}
}
