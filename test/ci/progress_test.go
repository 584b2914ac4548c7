package ci

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestProgressCountsPackages(t *testing.T) {
	cmd := exec.Command("../../.ci/progress")
	cmd.Env = append(os.Environ(), "PROGRESS_EVERY=2")
	cmd.Stdin = strings.NewReader("internal/abi\ngithub.com/x/y\ngithub.com/x/y [github.com/x/y.test]\n" +
		"go: downloading k8s.io/api v0.36.3\n# github.com/x/z\nz.go:1:1: undefined: q\n")
	out, err := cmd.CombinedOutput()
	want := "  2 packages compiled\ngo: downloading k8s.io/api v0.36.3\n# github.com/x/z\nz.go:1:1: undefined: q\n"
	if err != nil || string(out) != want {
		t.Errorf("%v, printed\n%s\nwant\n%s", err, out, want)
	}
}
