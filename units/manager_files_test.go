package units

import (
	"context"
	"os/exec"
	"path"
	"testing"
)

// The links are those that systemctl makes.
func TestFilesMakeTheLinksOfSystemctl(t *testing.T) {
	if _, err := exec.LookPath("systemctl"); err != nil {
		t.Skip("systemctl is not installed (Debian package systemd)")
	}
	ours, theirs := newHost(t, systemd237), newHost(t, systemd237)
	for name, opts := range map[string][]byte{ServiceName: render(mustService(t, Config{}, 237)), "sys-fs-bpf.mount": []byte(ourMount)} {
		for _, h := range []host{ours, theirs} {
			h.write(path.Join(systemDir, name), string(opts))
		}
		if err := newFiles(ours.root, 237).Enable(context.Background(), name); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("systemctl", "--root="+theirs.root, "enable", name).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	theirs.same(ours.snapshot(), "systemctl enable, compared with ours,")
}
