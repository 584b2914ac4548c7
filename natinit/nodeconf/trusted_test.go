package nodeconf

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/firsthop/firsthop/mounts/hostfs"
)

func tree(t *testing.T, files ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range files {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestTrustedListsADirectoryUnderEachOfItsPaths(t *testing.T) {
	root := tree(t, "usr/lib/systemd/system/a.service")
	if err := os.Symlink("usr/lib", filepath.Join(root, "lib")); err != nil {
		t.Fatal(err)
	}
	host := Trusted(root)
	for _, dir := range []string{"/usr/lib/systemd/system", "/lib/systemd/system"} {
		if got := host.Glob(dir + "/*.service"); !slices.Equal(got, []string{dir + "/a.service"}) {
			t.Errorf("%s: %v", dir, got)
		}
		if b, err := host.ReadFile(dir + "/a.service"); err != nil || string(b) != "usr/lib/systemd/system/a.service" {
			t.Errorf("%s: %q, %v", dir, b, err)
		}
	}
}

func TestTrustedSaysWhyItDoesNotRead(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: files of another user are not trusted")
	}
	root := tree(t, "etc/open/a", "etc/linked/a", "etc/file", "usr/dir/a", "usr/dir2/a")
	if err := errors.Join(os.Chmod(filepath.Join(root, "etc/open"), 0o777), os.Symlink("open", filepath.Join(root, "etc/link")),
		os.Lchown(filepath.Join(root, "etc/link"), 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/dir", filepath.Join(root, "etc/away")); err != nil {
		t.Fatal(err)
	}
	host := Trusted(root)
	for name, want := range map[string]error{
		"/etc/open/a":         hostfs.ErrUntrusted,
		"/etc/open/none":      hostfs.ErrUntrusted, // anybody may have taken it away
		"/etc/link/a":         hostfs.ErrUntrusted,
		"/etc/linked/none":    fs.ErrNotExist,
		"/etc/none/a":         fs.ErrNotExist,
		"/etc/file/a":         fs.ErrNotExist,
		"/etc/linked/../file": nil,
		"/etc/away/../dir2/a": nil, // it is /usr/dir2/a
	} {
		if _, err := host.ReadFile(name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if got := host.Glob("/etc/open/*"); !slices.Equal(got, []string{"/etc/open/a"}) {
		t.Errorf("what others may write is to be listed, so that it is reported: %v", got)
	}
}
