package qemu

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFindModules(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"kernel/a-b.ko.xz", "kernel/net/c.ko", "extra/d.ko.zst", "modules.dep", "kernel/e.ko.debug"} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(t.TempDir(), "modules")
	if err := os.Symlink(root, link); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{root, link} {
		got, err := findModules(dir)
		if err != nil || len(got) != 3 || got["a_b"] == "" || got["c"] == "" || got["d"] == "" {
			t.Errorf("in %s: %v, %v", dir, got, err)
		}
	}
	if got, err := findModules(""); err != nil || len(got) != 0 {
		t.Errorf("no directory has %v, %v", got, err)
	}
	if _, err := findModules(filepath.Join(root, "mistyped")); err == nil {
		t.Error("a directory that isn't there is accepted")
	}
}
