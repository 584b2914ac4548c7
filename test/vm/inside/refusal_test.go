package inside

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInitRefusesOldKernel runs on kernels below the minimum. On others, uname(2) is made to say 2.6: the version
// alone refuses a node, whatever the probes find.
func TestInitRefusesOldKernel(t *testing.T) {
	needsMachine(t)
	refuses := func(line ...string) {
		t.Helper()
		before := takeTraces(t)
		asOld(t, func() { firsthop(t, line...).exits(5).says("kernel", "minimum") })
		leftAlone(t, before)
	}
	refuses(initLine(server4+","+server6, "")[:5]...)
	refuses(append(initLine(server4+","+server6, "")[:5], "--dry-run")...)
	refuses("check")
	asOld(t, func() {
		firsthop(t, append(initLine(server4+","+server6, "")[:5], "--best-effort")...).exits(0).says("minimum")
	})
	firsthop(t, "uninstall").exits(0)
}

// leftAlone wants nothing but the report of a refused run on the machine, and that uninstall takes that away too.
func leftAlone(t *testing.T, before traces) {
	t.Helper()
	left := slices.DeleteFunc(takeTraces(t), func(line string) bool { return strings.Contains(line, " /run/firsthop") })
	left.wantSame(t, "a refusal", before)
	firsthop(t, "uninstall").exits(0)
	takeTraces(t).wantSame(t, "a refusal and uninstall", before)
}

// TestInitRefusesKernelWithoutFeature: a version that is new enough does not help.
func TestInitRefusesKernelWithoutFeature(t *testing.T) {
	needsMachine(t)
	for _, feature := range []string{"connect4", "recvmsg6", "map-lru-hash", "bpffs"} {
		before := takeTraces(t)
		firsthop(t, initLine(server4+","+server6, feature)...).exits(5).says(feature)
		leftAlone(t, before)
	}
}

// asOld runs fn on a thread for which, and for whose children, this is Linux 2.6, unless the kernel is too old anyway.
func asOld(t *testing.T, fn func()) {
	t.Helper()
	if os.Getenv("FIRSTHOP_VM_REFUSED") == "" {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		const uname26 = 0x0020000 // UNAME26 of linux/personality.h
		if _, _, errno := unix.Syscall(unix.SYS_PERSONALITY, uname26, 0, 0); errno != 0 {
			t.Fatal("set the personality:", errno)
		}
		defer unix.Syscall(unix.SYS_PERSONALITY, 0, 0, 0)
	}
	fn()
}
