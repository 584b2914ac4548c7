// Package ci tests the scripts in .ci.
package ci

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fuzzModule has KEYWORD for func: .ci/fuzz looks for fuzz tests with grep, and must not find this one here.
const fuzzModule = `package slow

import "testing"

KEYWORD FuzzNothing(f *testing.F) {
	f.Add([]byte("a"))
	f.Fuzz(func(t *testing.T, b []byte) {})
}
`

// fuzz runs .ci/fuzz on a module that has one fuzz test.
func fuzz(t *testing.T, time string) (output string, err error) {
	t.Helper()
	repository, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{"go.mod": "module slow\n", "slow_test.go": strings.Replace(fuzzModule, "KEYWORD", "func", 1)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	module, err := filepath.Rel(repository, dir)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(repository, ".ci/fuzz"), time, "./...")
	cmd.Env = append(os.Environ(), "MODULE="+module, "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestFuzzReportsExecutions(t *testing.T) {
	out, err := fuzz(t, "1000x")
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if !strings.Contains(out, "FuzzNothing") || !strings.Contains(out, "  10") {
		t.Errorf("want the name and at least 1000 executions:\n%s", out)
	}
}

func TestFuzzFailsBelowAThousandExecutions(t *testing.T) {
	out, err := fuzz(t, "10x")
	if err == nil {
		t.Fatalf("10 executions are accepted:\n%s", out)
	}
	if !strings.Contains(out, "FuzzNothing: 1") || !strings.Contains(out, "want 1000 or more") {
		t.Errorf("the failure does not say what is wrong:\n%s", out)
	}
}
