package kernel

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestParseOSReleaseFollowsTheShell(t *testing.T) {
	for _, test := range []struct{ sentence, line, want string }{
		{"a bare word", `V=debian`, "debian"},
		{"double quotes go", `V="Debian GNU/Linux 12 (bookworm)"`, "Debian GNU/Linux 12 (bookworm)"},
		{"single quotes go", `V='Arch Linux'`, "Arch Linux"},
		{"an empty value", `V=`, ""},
		{"an empty quoted value", `V=""`, ""},
		{"a backslash in double quotes escapes a quote", `V="a \"b\" c"`, `a "b" c`},
		{"a backslash in double quotes escapes a dollar, which never expands", `V="\$HOME"`, "$HOME"},
		{"a backslash before anything else in double quotes stays", `V="a\nb"`, `a\nb`},
		{"a backslash in single quotes stays", `V='a\b'`, `a\b`},
		{"a backslash outside quotes escapes", `V=a\ b`, "a b"},
		{"a double quote in single quotes is a letter", `V='"'`, `"`},
		{"quotes in the middle of a word", `V=a"b c"d`, "ab cd"},
		{"a hash inside quotes is no comment", `V="a #b"`, "a #b"},
		{"an equals sign belongs to the value", `V="a=b"`, "a=b"},
		{"a comment behind the value", `V=a # b`, "a"},
		{"blanks around the line, and a carriage return of another system", "  V=a \r", "a"},
	} {
		values, err := ParseOSRelease(test.line)
		if err != nil || values["V"] != test.want {
			t.Errorf("%s: %s gives %q, %v; want %q", test.sentence, test.line, values["V"], err, test.want)
		}
	}
}

func TestParseOSReleaseNamesBadLines(t *testing.T) {
	for sentence, line := range map[string]string{
		"an open quote":           `V="a`,
		"two words":               `V=a b`,
		"a lonely backslash":      `V=a\`,
		"no assignment":           `hello`,
		"a name that is no name":  `1V=a`,
		"a blank before the sign": `V =a`,
	} {
		values, err := ParseOSRelease("ID=ok\n" + line + "\n")
		if err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%s: %q gives %v, want an error that names line 2", sentence, line, err)
		}
		if values["ID"] != "ok" {
			t.Errorf("%s: the good line before it was lost", sentence)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestReadDistributionPrefersEtc(t *testing.T) {
	root := t.TempDir()
	if d, err := readDistribution(root); err == nil {
		t.Errorf("an empty tree has a distribution: %+v", d)
	}
	write(t, filepath.Join(root, "usr/lib/os-release"), "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=8.8\nPRETTY_NAME=\"Rocky Linux 8.8 (Green Obsidian)\"\n")
	d, err := readDistribution(root)
	if err != nil || d.ID != "rocky" || !d.Is("rhel") || d.Is("debian") || d.PrettyName != "Rocky Linux 8.8 (Green Obsidian)" || d.File != "/usr/lib/os-release" {
		t.Errorf("usr/lib/os-release was read as %+v, %v", d, err)
	}
	write(t, filepath.Join(root, "etc/os-release"), "NAME=x\n")
	d, err = readDistribution(root)
	if err != nil || d.ID != "linux" || d.File != "/etc/os-release" {
		t.Errorf("etc/os-release without an ID was read as %+v, %v; want the default of os-release(5), linux", d, err)
	}
}

func TestReadDistributionStaysInTheTree(t *testing.T) {
	for sentence, link := range map[string]string{
		"a relative link, as Debian has it": "../usr/lib/os-release",
		"an absolute link":                  "/usr/lib/os-release",
		"a link that climbs too high":       "../../../../../../../../../usr/lib/os-release",
	} {
		root := t.TempDir()
		write(t, filepath.Join(root, "usr/lib/os-release"), "ID=inside\n")
		if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(link, filepath.Join(root, "etc/os-release")); err != nil {
			t.Fatal(err)
		}
		if d, err := readDistribution(root); err != nil || d.ID != "inside" {
			t.Errorf("%s: found %+v, %v; want the tree's own", sentence, d, err)
		}
	}
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("os-release", filepath.Join(root, "etc/os-release")); err != nil {
		t.Fatal(err)
	}
	if d, err := readDistribution(root); err == nil {
		t.Errorf("a link to itself gave %+v", d)
	}
}

var osReleaseName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func FuzzParseOSRelease(f *testing.F) {
	f.Add("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n")
	f.Add("A='b\\'\nB=\"\\\"\"\n# c\n\nD=\\")
	f.Fuzz(func(t *testing.T, in string) {
		values, _ := ParseOSRelease(in)
		for name, value := range values {
			if !osReleaseName.MatchString(name) || len(value) > len(in) {
				t.Errorf("ParseOSRelease(%q) made up %q=%q", in, name, value)
			}
		}
	})
}
