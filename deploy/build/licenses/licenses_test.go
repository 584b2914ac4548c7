package licenses

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

const repository = "../../.."

// TestModulesAreThoseLinked compares what is listed with what the linker wrote into the program.
func TestModulesAreThoseLinked(t *testing.T) {
	program := filepath.Join(t.TempDir(), "firsthop")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags=urfave_cli_no_docs", "-ldflags=-s -w", "-o", program, "./cmd/firsthop")
	build.Dir, build.Env = repository, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{}
	if err := modules(t.Context(), repository, runtime.GOARCH, listed); err != nil {
		t.Fatal(err)
	}
	for _, m := range info.Deps {
		name := m.Path + "@" + m.Version
		if listed[name] == "" {
			t.Errorf("%s is linked, and not listed", name)
		}
		delete(listed, name)
	}
	for name := range listed {
		t.Errorf("%s is listed, and not linked", name)
	}
	if len(info.Deps) < 10 {
		t.Errorf("only %d modules are linked", len(info.Deps))
	}
}

// TestThirdPartyHasEveryModule: each that is linked on any architecture has a text, with its name and version above it.
func TestThirdPartyHasEveryModule(t *testing.T) {
	text, err := ThirdParty(t.Context(), repository)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"the Go standard library": ""}
	for _, arch := range architectures {
		if err := modules(t.Context(), repository, arch, want); err != nil {
			t.Fatal(err)
		}
	}
	for name := range want {
		if !strings.Contains(string(text), "==== "+name+": ") {
			t.Errorf("there is no license of %s", name)
		}
	}
	if !strings.Contains(string(text), "Permission is hereby granted") || strings.Contains(string(text), "goreleaser/nfpm") {
		t.Error("the texts are not there, or those of what only makes packages are")
	}
}

func TestLicenseFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"LICENSE", "NOTICE.txt", "license.go", "README.md"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files, err := licenseFiles(dir)
	if err != nil || len(files) != 2 {
		t.Errorf("%q, %v, want LICENSE and NOTICE.txt", files, err)
	}
	if _, err := licenseFiles(t.TempDir()); err == nil {
		t.Error("a module without a license is accepted")
	}
}
