package debian

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMirrorOf(t *testing.T) {
	public := publicMirror
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  Mirror
	}{
		{"a machine without apt", nil, public},
		{"the older form", map[string]string{"sources.list": "# c\ndeb http://near.example/debian/ bookworm main\n"},
			Mirror{"http://near.example/debian", public.Security}},
		{"the older form with options", map[string]string{"sources.list.d/a.list": "deb [arch=amd64 signed-by=/k] https://near.example/debian-security x main"},
			Mirror{public.Main, "https://near.example/debian-security"}},
		{"the newer form", map[string]string{"sources.list.d/debian.sources": "Types: deb\nURIs: http://near.example/m/debian\nSuites: bookworm\n\nTypes: deb\nURIs: http://near.example/m/debian-security\n"},
			Mirror{"http://near.example/m/debian", "http://near.example/m/debian-security"}},
		{"other vendors are not Debian", map[string]string{"sources.list": "deb http://archive.example/ubuntu noble main\ndeb https://x.example/debian-tools a b\n"}, public},
		{"sources are not packages", map[string]string{"sources.list": "deb-src http://near.example/debian bookworm main\n"}, public},
		{"a mirror that is a directory is left alone", map[string]string{"sources.list": "deb file:///srv/debian bookworm main\n"}, public},
		{"switched off files are not read", map[string]string{"sources.list.d/a.list.save": "deb http://near.example/debian x main"}, public},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range tc.files {
				path := filepath.Join(root, "etc/apt", name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := MirrorOf(root)
			if err != nil || got != tc.want {
				t.Errorf("got %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
}

func TestParseURIs(t *testing.T) {
	got, err := parseURIs(`'http://x/pool/q/qemu-system-x86_1%3a10.0.13%2bds-0_amd64.deb' qemu-system-x86_1%3a10.0.13+ds-0_amd64.deb 10278596 MD5Sum:00
'http://x/pool/l/linux-base_4.17%7ebpo13%2b1_all.deb' linux-base_4.17~bpo13+1_all.deb 26836 ` + "\nnoise\n")
	want := []pkg{{"qemu-system-x86", "1:10.0.13+ds-0"}, {"linux-base", "4.17~bpo13+1"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(pkg{})); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := parseURIs("'http://x/a.deb' a.deb 1 MD5Sum:0\n"); err == nil {
		t.Error("a name without a version is accepted")
	}
}
