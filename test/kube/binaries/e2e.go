package binaries

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// E2EDir is the directory below that of Ensure's programs that has those of EnsureE2E.
const E2EDir = "e2e"

// PorterFiles are those that agnhost's HTTPS servers want in the directory in which they run.
var PorterFiles = []string{"localhost.crt", "localhost.key"}

// EnsureE2E returns a directory with Kubernetes' end-to-end tests of the network (e2e.test), what runs them in parallel
// (ginkgo), and the programs of their images. For the very first time it takes five minutes on two idle cores.
func EnsureE2E(ctx context.Context, cfg Config) (string, error) {
	if cfg.Log == nil {
		cfg.Log = io.Discard
	}
	parent, version, err := cfg.dir(ctx)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(parent, E2EDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := Lock(filepath.Join(cfg.Cache, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	module, err := goCommand(ctx, cfg.Module, "list", "-m", "-f", "{{.Dir}}", kubernetes)
	if err != nil {
		return "", err
	}
	for _, name := range PorterFiles {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			continue
		}
		if err := install(filepath.Join(module, "test/images/agnhost/porter", name), filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	suite := filepath.Join(cfg.Module, "e2e/suite")
	if Newer(filepath.Join(dir, "e2e.test"), filepath.Join(suite, "suite_test.go"), filepath.Join(cfg.Module, "go.sum")) {
		return dir, nil // go would link it again, each time
	}
	programs := []string{"github.com/onsi/ginkgo/v2/ginkgo"}
	for _, image := range []string{"agnhost", "regression-issue-74839"} {
		programs = append(programs, kubernetes+"/test/images/"+image)
	}
	if err := cfg.compile(ctx, dir, "-s -w", programs...); err != nil {
		return "", err
	}
	fmt.Fprintf(cfg.Log, "building the end-to-end tests of %s %s: this takes five minutes on two idle cores, and is done once\n", kubernetes, version)
	made := filepath.Join(dir, "e2e.test")
	_, err = goCommandWith(ctx, newProgress(cfg.Log), cfg.Module, "test", "-c", "-tags", "e2e", "-ldflags",
		"-s -w -X k8s.io/component-base/version.gitVersion="+version, "-o", made+".new", "./e2e/suite")
	if err != nil {
		return "", err
	}
	return dir, os.Rename(made+".new", made)
}

// Newer reports whether a file is there and newer than all of its inputs.
func Newer(name string, inputs ...string) bool {
	made, err := os.Stat(name)
	return err == nil && !slices.ContainsFunc(inputs, func(input string) bool {
		info, err := os.Stat(input)
		return err != nil || info.ModTime().After(made.ModTime())
	})
}
