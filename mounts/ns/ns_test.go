package ns

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// What runs on a thread of its own leaves nothing behind in the others.
func TestDo(t *testing.T) {
	needRoot(t)
	before, err := os.Readlink("/proc/self/ns/mnt")
	must(t, err)
	for range 50 {
		must(t, Do(func() error {
			if unix.Gettid() == unix.Getpid() {
				t.Error("on the main thread")
			}
			return unix.Unshare(unix.CLONE_NEWNS)
		}))
		for _, link := range []string{"/proc/self/ns/mnt", "/proc/thread-self/ns/mnt"} {
			if now, err := os.Readlink(link); err != nil || now != before {
				t.Fatalf("%s is %s, was %s (%v)", link, now, before, err)
			}
		}
	}
}

func TestEnterOfEveryKind(t *testing.T) {
	needRoot(t)
	self, err := os.Open("/proc/self")
	must(t, err)
	defer self.Close()
	for kind, file := range files {
		must(t, Do(func() error {
			if err := unix.Unshare(kind); err != nil {
				return err
			}
			away, err := os.Readlink("/proc/thread-self/ns/" + file)
			must(t, err)
			if err := EnterOf(self, kind); err != nil {
				return err
			}
			back, err := os.Readlink("/proc/thread-self/ns/" + file)
			must(t, err)
			if home, _ := os.Readlink("/proc/self/ns/" + file); back != home || back == away {
				t.Errorf("%s: went from %s to %s, want %s", file, away, back, home)
			}
			return nil
		}))
	}
}
