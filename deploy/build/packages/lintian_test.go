package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestLintian has Debian's own judge look at a package with the real program, as `make packages` builds it.
func TestLintian(t *testing.T) {
	program := filepath.Join(t.TempDir(), "firsthop")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags=urfave_cli_no_docs", "-ldflags=-s -w", "-o", program, "./cmd/firsthop")
	cmd.Dir, cmd.Env = repository, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b := newBuild(t)
	b.Programs = []Program{{runtime.GOARCH, program}}
	for _, file := range write(t, b) {
		if !strings.HasSuffix(file, ".deb") {
			continue
		}
		out, err := exec.Command("lintian", "--no-cfg", "--fail-on=error,warning", "--tag-display-limit=0", file).CombinedOutput()
		if err != nil || strings.Contains(string(out), ": ") {
			t.Errorf("%v\n%s", err, out)
		}
	}
}
