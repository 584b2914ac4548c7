package main

import (
	"os/exec"
	"testing"
	"time"

	rpmutils "github.com/sassoftware/go-rpmutils"
)

var commit = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func TestPackageVersion(t *testing.T) {
	for _, tc := range []struct{ name, git, want string }{
		{"a tag", "v1.2.3", "1.2.3"},
		{"a tag without v", "1.2.3", "1.2.3"},
		{"commits after a tag", "v1.2.3-5-gabc1234", "1.2.3+5.gabc1234"},
		{"with changes", "v1.2.3-5-gabc1234-dirty", "1.2.3+5.gabc1234+dirty"},
		{"a tag with changes", "v1.2.3-dirty", "1.2.3+dirty"},
		{"a pre-release", "v1.2.3-rc.1", "1.2.3~rc.1"},
		{"commits after a pre-release", "v1.2.3-rc1-12-gabc1234", "1.2.3~rc1+12.gabc1234"},
		{"no tag", "ec85121", "0~20261120120000.gec85121"},
		{"no tag, and a hash of digits alone", "1234567", "0~20261120120000.g1234567"},
		{"no tag, with changes", "ec85121-dirty", "0~20261120120000.gec85121+dirty"},
	} {
		got, err := packageVersion(tc.git, commit)
		if err != nil || got != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.name, got, err, tc.want)
		}
	}
	for _, bad := range []string{"", "unknown", "v1.2.3_4", "v1.2.3-a/b", "v1.2.3-rc 1"} {
		if got, err := packageVersion(bad, commit); err == nil {
			t.Errorf("%q is taken for %q", bad, got)
		}
	}
}

// An upgrade along the history has a newer version each time, by dpkg's order and by rpm's.
func TestVersionsAreOrdered(t *testing.T) {
	history := []string{"ec85121", "v0.1.0-rc.1", "v0.1.0-rc.1-3-gabc1234", "v0.1.0-rc.2", "v0.1.0", "v0.1.0-1-gfff1234", "v0.1.0-10-gaaa1234", "v0.1.1", "v0.2.0", "v0.10.0", "v1.0.0"}
	var versions []string
	for _, git := range history {
		v, err := packageVersion(git, commit)
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, v)
	}
	later, err := packageVersion("1234567", commit.Add(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	versions = append([]string{versions[0], later}, versions[1:]...)
	_, noDpkg := exec.LookPath("dpkg")
	for i := 1; i < len(versions); i++ {
		older, newer := versions[i-1], versions[i]
		if rpmutils.Vercmp(older, newer) >= 0 {
			t.Errorf("for rpm %s is not before %s", older, newer)
		}
		if noDpkg == nil {
			if out, err := exec.Command("dpkg", "--compare-versions", older, "lt", newer).CombinedOutput(); err != nil {
				t.Errorf("for dpkg %s is not before %s: %v %s", older, newer, err, out)
			}
		}
	}
}

func FuzzPackageVersion(f *testing.F) {
	f.Add("v1.2.3-rc.1-5-gabc1234-dirty")
	f.Add("ec85121-dirty")
	f.Fuzz(func(t *testing.T, git string) {
		v, err := packageVersion(git, commit)
		if err != nil {
			return
		}
		for i, r := range v {
			digit := r >= '0' && r <= '9'
			if letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'; !digit && !letter && r != '.' && r != '+' && r != '~' || i == 0 && !digit {
				t.Errorf("%q makes %q, which has a %q", git, v, r)
			}
		}
	})
}
