package ns

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDiffer(t *testing.T) {
	const own = "/proc/thread-self/ns/net"
	if err := Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if !Differ("/proc/self/ns/net", own) {
			t.Error("a thread is in a namespace of its own, and Differ does not see it")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for what, path := range map[string]string{
		"the same":                          "/proc/self/ns/net",
		"no file":                           filepath.Join(t.TempDir(), "none"),
		"a directory, as Debian's 5.10 has": "/proc/self/ns",
	} {
		if Differ(path, own) || Differ(own, path) {
			t.Errorf("%s: differs", what)
		}
	}
}
