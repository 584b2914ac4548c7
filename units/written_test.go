package units

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// The links are those that systemctl makes.
func TestLinksAreThoseOfSystemctl(t *testing.T) {
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

// A new file carries the label of its siblings, the binary that of /usr/bin.
func TestSELinuxLabels(t *testing.T) {
	h := newHost(t, with(systemd252, systemDir+"/other.service", "[Unit]\n", "/usr/bin/", ""))
	set := func(p, label string) {
		t.Helper()
		if err := setLabel(h.path(p), label); err != nil {
			t.Skipf("no right to set %s here: %v", selinuxAttr, err)
		}
	}
	set(systemDir+"/other.service", "system_u:object_r:systemd_unit_file_t:s0")
	set("/usr/bin", "system_u:object_r:bin_t:s0")
	mustInstall(t, h.config())
	for p, want := range map[string]string{servicePath: "system_u:object_r:systemd_unit_file_t:s0", BinaryPath: "system_u:object_r:bin_t:s0"} {
		if got := label(h.path(p)); got != want {
			t.Errorf("label of %s = %q, want %q", p, got, want)
		}
	}
	// Rewritten, it keeps the label that it has, whoever gave it.
	set(servicePath, "system_u:object_r:custom_t:s0")
	c := h.config()
	c.Args = []string{"init", "--boot", "--x"}
	mustInstall(t, c)
	if got := label(h.path(servicePath)); got != "system_u:object_r:custom_t:s0" {
		t.Errorf("label after a rewrite = %q", got)
	}
}

// A script that OpenRC would run: the shell reads it, depend and start work.
func TestOpenRCScriptRuns(t *testing.T) {
	h := newHost(t, openrc)
	c := h.config()
	c.Args = []string{"init", "--boot", "it's $HOME", "a  b"}
	mustInstall(t, c)
	stub := filepath.Join(t.TempDir(), "firsthop")
	if err := os.WriteFile(stub, []byte("#!/bin/sh\nfor a; do echo \"<$a>\"; done\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	script := strings.ReplaceAll(h.read(openrcScript), BinaryPath, stub)
	out, err := exec.Command("sh", "-eu", "-c", `ebegin() { :; }; eend() { echo "end $1"; }
before() { echo "before $*"; }; after() { echo "after $*"; }; keyword() { :; }
`+script+"\ndepend\nset +e\nstart").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"<init>\n<--boot>\n<it's $HOME>\n<a  b>\nend 3", "before kubelet containerd", "after localmount"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("does not have %q:\n%s", want, out)
		}
	}
	if fi, err := os.Stat(h.path(openrcScript)); err != nil || fi.Mode() != fs.FileMode(0o755) {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}
