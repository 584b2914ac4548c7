package vm

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// An image brings its modules along if it lies where packages put it.
func TestKernelGivenFindsItsModules(t *testing.T) {
	arm := make([]byte, 64)
	copy(arm[56:], "ARM\x64")
	image := string(arm) + "Linux version 5.3.0-1 (x)"
	for name, tc := range map[string]struct{ image, modules, given, want string }{
		"in /boot":                              {"boot/vmlinuz", "lib/modules/5.3.0-1/kernel", "", "lib/modules/5.3.0-1"},
		"in /boot, with a merged /usr":          {"boot/vmlinuz", "usr/lib/modules/5.3.0-1/kernel", "", "usr/lib/modules/5.3.0-1"},
		"among its modules":                     {"lib/modules/5.3.0-1/vmlinuz", "lib/modules/5.3.0-1/kernel", "", "lib/modules/5.3.0-1"},
		"with those of another":                 {"boot/vmlinuz", "lib/modules/5.4.0/kernel", "", ""},
		"alone":                                 {"vmlinuz", "boot", "", ""},
		"with others that are said to be right": {"boot/vmlinuz", "lib/modules/5.3.0-1/kernel", "mine", "mine"},
	} {
		root := t.TempDir()
		file := filepath.Join(root, tc.image)
		for _, dir := range []string{filepath.Dir(file), filepath.Join(root, tc.modules)} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(file, []byte(image), 0o644); err != nil {
			t.Fatal(err)
		}
		k, err := GivenKernel(file, tc.given)
		got := strings.TrimPrefix(strings.TrimPrefix(k.Modules, root), "/")
		if err != nil || got != tc.want || k.Arch != "arm64" || k.Like != "5.3" || k.Name != "5.3.0-1" {
			t.Errorf("%s: %+v, %v; want the modules %q", name, k, err, tc.want)
		}
	}
}

// Two machines that talk at once are distinguished, also where they end no line.
func TestLinesAreOfOneMachine(t *testing.T) {
	var out strings.Builder
	var mu sync.Mutex
	a, b := &lines{w: &out, before: "a:", mu: &mu}, &lines{w: &out, before: "b:", mu: &mu}
	for _, part := range []struct {
		l    *lines
		text string
	}{{a, "1"}, {b, "2\n3"}, {a, "4\n5\n"}, {b, "\n"}} {
		if n, err := part.l.Write([]byte(part.text)); n != len(part.text) || err != nil {
			t.Fatal(n, err)
		}
	}
	if want := "b:2\na:14\na:5\nb:3\n"; out.String() != want {
		t.Errorf("got %q, want %q", &out, want)
	}
}
