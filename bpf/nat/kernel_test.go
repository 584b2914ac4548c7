package nat

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/mounts/ns"
)

// Where one CPU is online the kernel's membarrier returns at once, though a program may be preempted there
// (kernel/sched/membarrier.c): an entry that it still reads must not go.
func TestSynchronizeOnOneCPU(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, tc := range []struct {
		online string
		one    bool
	}{
		{"0\n", true}, {"3\n", true}, {"0-1\n", false}, {"0,2\n", false}, {"0-3,6\n", false},
	} {
		file := filepath.Join(t.TempDir(), "online")
		if err := os.WriteFile(file, []byte(tc.online), 0o644); err != nil {
			t.Fatal(err)
		}
		var one bool
		var took time.Duration
		err := withFile("/sys/devices/system/cpu/online", file, func() error {
			one = oneCPU()
			began := time.Now()
			err := (&Kernel{}).Synchronize()
			took = time.Since(began)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if one != tc.one || one && took < 100*time.Millisecond {
			t.Errorf("with %q online: one CPU is %v, and the grace period took %s", tc.online, one, took)
		}
	}
}

// withFile runs do where a file has the content of another, in a mount namespace of its own.
func withFile(name, with string, do func() error) error {
	return ns.Do(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount(with, name, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return do()
	})
}
