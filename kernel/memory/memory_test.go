package memory

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTotal(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       uint64
	}{
		{"a node", "MemTotal:       16384000 kB\nMemFree:         1000 kB\n", 16384000 << 10},
		{"not the first line", "Foo: 1 kB\nMemTotal: 2 kB\n", 2 << 10},
		{"no unit", "MemTotal: 2\n", 0},
		{"no number", "MemTotal: much kB\n", 0},
		{"a number that is too large", "MemTotal: 18446744073709551615 kB\n", 0},
		{"nothing", "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, "proc/meminfo"), []byte(tc.text), 0o644); err != nil {
				t.Fatal(err)
			}
			if got := Total(root); got != tc.want {
				t.Errorf("%d, want %d", got, tc.want)
			}
		})
	}
	if got := Total(t.TempDir()); got != 0 {
		t.Errorf("%d without the file", got)
	}
	if Total("") == 0 {
		t.Error("this machine has no memory")
	}
}
