// Package test asserts what holds for the tree as a whole. Its subdirectories hold what tests are made of.
package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/firsthop/firsthop"

// arrows says which top-level directories the packages of each may import: cmd -> {bootstrap, runtime} -> {natinit,
// mounts, kernel, units} -> bpf, where an arrow may skip a layer but never point up or sideways. Packages of one
// directory import each other freely.
var arrows = map[string][]string{
	"cmd":       {"bootstrap", "runtime", "natinit", "mounts", "kernel", "units", "bpf", "deploy"},
	"bootstrap": {"natinit", "mounts", "kernel", "units", "bpf", "deploy"},
	"runtime":   {"natinit", "mounts", "kernel", "units", "bpf"},
	"natinit":   {"bpf"},
	"mounts":    {"bpf"},
	"kernel":    {"bpf"},
	"units":     {"bpf"},
	"bpf":       {},
	"deploy":    {}, // data
	// What tests are made of stands beside the product: it runs the binary and looks at the kernel.
	"test": {"bpf"},
}

// groundFloor are the leaf packages that every layer may import. They import nothing of ours but each other.
var groundFloor = []string{"kernel/memory", "kernel/privileges", "mounts/hostfs", "mounts/ns", "natinit/instance", "units/unitfile"}

// attachers are the tests that attach as the product does: they look at what packets see of it, on the running kernel.
var attachers = map[string][]string{"test/wire": {"natinit/attach"}}

// testSupport holds the packages that tests may import and the product may not.
const testSupport = "test"

// isTestSupport tells whether a package is for tests only.
func isTestSupport(path string) bool { return layer(path) == testSupport }

// layer returns the top-level directory of one of our packages, "" for a package of others.
func layer(path string) string {
	rest, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return ""
	}
	top, _, _ := strings.Cut(rest, "/")
	return top
}

// judge returns why a package must not import another, nil if it may.
func judge(from, to string) error {
	a, b := layer(from), layer(to)
	allowed, known := arrows[a]
	onGround := func(path string) bool { return slices.Contains(groundFloor, strings.TrimPrefix(path, module+"/")) }
	switch {
	case b == "":
		return nil
	case onGround(from) && !onGround(to) && !isTestSupport(to):
		return fmt.Errorf("%s imports %s: a package of the ground floor imports nothing of ours but its like", from, to)
	case !known:
		return fmt.Errorf("%s: the directory %s has no row in the table of arrows", from, a)
	case isTestSupport(to) && isTestSupport(from):
		return nil
	case isTestSupport(to):
		return fmt.Errorf("%s imports %s: only test files may", from, to)
	case slices.Contains(attachers[strings.TrimPrefix(from, module+"/")], strings.TrimPrefix(to, module+"/")):
		return nil
	case onGround(to), a == b && a != "cmd", slices.Contains(allowed, b):
		return nil
	case b == "cmd":
		return fmt.Errorf("%s imports %s: nobody imports a command; move what is shared down", from, to)
	}
	return fmt.Errorf("%s imports %s: %s may import only %v; move what both need down, or hand it in from above as an interface",
		from, to, a, allowed)
}

func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		name, from, to string
		allowed        bool
	}{
		{"a command uses the init stage", "cmd/firsthop", "bootstrap", true},
		{"an arrow may skip a layer", "cmd/firsthop", "bpf/nat", true},
		{"the init stage seeds", "bootstrap", "natinit", true},
		{"packages of one directory are of one piece", "natinit/apiserver/discover", "natinit/apiserver", true},
		{"the runtime shares what is about API servers", "runtime", "natinit/apiserver", true},
		{"the init stage does not know the runtime", "bootstrap", "runtime", false},
		{"the runtime does not know the init stage", "runtime/services", "bootstrap", false},
		{"no arrow goes sideways", "mounts", "kernel", false},
		{"no arrow goes up", "natinit", "bootstrap", false},
		{"bpf imports nothing of ours", "bpf/nat", "kernel", false},
		{"nobody imports a command", "bootstrap", "cmd/firsthop", false},
		{"not even another command", "cmd/other", "cmd/firsthop", false},
		{"the product does not import test support", "natinit", "test/lab", false},
		{"test support uses test support", "test/apitest", "test/lab", true},
		{"test support does not use what it supports", "test/apitest", "natinit/apiserver", false},
		{"but for the tests of what packets see", "test/wire", "natinit/attach", true},
		{"which use no more than that", "test/wire", "natinit/apiserver", false},
		{"everybody reads files of the host", "natinit/apiserver", "mounts/hostfs", true},
		{"the ground floor is no way to the rest of its layer", "natinit", "mounts", false},
		{"the ground floor imports nothing of ours", "mounts/hostfs", "mounts", false},
		{"but its like", "natinit/instance", "mounts/hostfs", true},
		{"units too stands on the ground floor", "units", "natinit/instance", true},
		{"a new directory needs a row", "misc", "bpf", false},
	} {
		if err := judge(module+"/"+tc.from, module+"/"+tc.to); (err == nil) != tc.allowed {
			t.Errorf("%s: %s -> %s: %v", tc.name, tc.from, tc.to, err)
		}
	}
}

// goPackage is what we read of `go list -json`.
type goPackage struct {
	ImportPath, Dir           string
	Imports, CgoFiles         []string
	Standard                  bool
	TestImports, XTestImports []string
}

func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	const fields = "-json=ImportPath,Dir,Imports,CgoFiles,Standard,TestImports,XTestImports"
	cmd := exec.Command("go", append([]string{"list", fields}, args...)...)
	cmd.Dir = ".."
	// As the product is built, whatever this test is.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOFLAGS=-buildvcs=false")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var packages []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatal("go list:", err)
		}
		packages = append(packages, p)
	}
}

func TestImportsFollowTheArrows(t *testing.T) {
	packages := goList(t, "./...")
	if len(packages) == 0 {
		t.Fatal("go list found no packages")
	}
	for _, p := range packages {
		for _, to := range p.Imports {
			if err := judge(p.ImportPath, to); err != nil {
				t.Error(err)
			}
		}
		// Tests of a layer may look at every layer below and use the support; arrows up would make cycles of layers.
		for _, to := range slices.Concat(p.TestImports, p.XTestImports) {
			if isTestSupport(to) {
				continue
			}
			if err := judge(p.ImportPath, to); err != nil && !strings.HasPrefix(to, p.ImportPath) {
				t.Error("in its tests, ", err)
			}
		}
	}
}

// The binary is linked from cmd: whatever it reaches, it must not reach tests or C.
func TestTheBinaryIsPure(t *testing.T) {
	if _, err := os.Stat("../cmd/firsthop/main.go"); err != nil {
		t.Fatal("the product has no command:", err)
	}
	for _, p := range goList(t, "-deps", "./cmd/...") {
		if p.ImportPath == "testing" || isTestSupport(p.ImportPath) {
			t.Errorf("the binary contains %s: find out why with `go list -deps`, and import it in tests only", p.ImportPath)
		}
		if len(p.CgoFiles) > 0 {
			t.Errorf("the binary needs cgo for %s: use a package without it", p.ImportPath)
		}
	}
}

// root lists what the top level may hold. The tree is given; see docs/architecture.md.
var root = []string{
	"go.mod", "go.sum", "cmd", "bootstrap", "mounts", "kernel", "natinit", "runtime", "units", "bpf", "Makefile", "test",
	"README.md", "LICENSE", "CHANGELOG.md", "docs", "deploy", ".ci",
	// Configuration of tools, which look for it here.
	".clang-format", "staticcheck.conf", ".gitignore",
}

func TestTheTopLevelHoldsNothingElse(t *testing.T) {
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	ignored := []string{".git", "bin", ".cache"}
	for _, e := range entries {
		if !slices.Contains(root, e.Name()) && !slices.Contains(ignored, e.Name()) {
			t.Errorf("%s does not belong at the top level: move it below one of %v", e.Name(), root)
		}
	}
	for _, name := range []string{"go.mod", "Makefile", "LICENSE", "README.md", "cmd"} {
		if _, err := os.Stat(filepath.Join("..", name)); err != nil {
			t.Error("the top level lacks something:", err)
		}
	}
}
