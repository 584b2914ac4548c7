package mounts

import (
	"os"
	"path"
	"testing"
)

// A symbolic link below a root never leads out of it.
func TestResolveStaysInside(t *testing.T) {
	root := t.TempDir()
	must(t, os.MkdirAll(root+"/a/b", 0o755))
	for link, to := range map[string]string{"abs": "/a/b", "up": "../../../a", "loop": "loop", "out": "/etc/passwd", "dots": "./a//b/../b/."} {
		must(t, os.Symlink(to, path.Join(root, link)))
	}
	v := view{prefix: root}
	for in, want := range map[string]string{
		"/abs": "/a/b", "/up/b": "/a/b", "/dots": "/a/b", "/a/../a/b/": "/a/b", "/": "/", "/../..": "/", "/loop": "", "/out": "", "/none": "",
	} {
		got, err := v.resolve(in)
		if (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%s: %q, %v; want %q", in, got, err, want)
		}
	}
}
