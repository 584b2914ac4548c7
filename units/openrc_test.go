package units

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

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
