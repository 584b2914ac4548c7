package units

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsthop/firsthop/natinit/instance"
)

// The unit of a package differs from the one that install writes by where the
// program is and by what it says of itself, and is the package manager's.
func TestPackageUnitIsOurUnitWithAnotherProgram(t *testing.T) {
	ours := strings.Split(ourService, "\n")
	var differ []string
	for line := range strings.Lines(pkgUnit) {
		line = strings.TrimSuffix(line, "\n")
		same := false
		for _, our := range ours {
			same = same || our == line || our == strings.ReplaceAll(strings.ReplaceAll(line, PackageProgram, BinaryPath), "/usr/bin ", "/opt/firsthop/bin ")
		}
		if !same && !strings.HasPrefix(line, "#") {
			differ = append(differ, line)
		}
	}
	if d := cmp.Diff([]string{"Documentation=man:firsthop(8) https://github.com/firsthop/firsthop"}, differ); d != "" {
		t.Errorf("lines that differ (-want +got):\n%s", d)
	}
	if isOurs([]byte(pkgUnit)) {
		t.Error("it carries our marker, so an uninstall would remove a package's file")
	}
	if got := programOf([]byte(pkgUnit)); got != PackageProgram {
		t.Errorf("it starts %q", got)
	}
}

func TestProgramOf(t *testing.T) {
	for _, tt := range []struct{ row, unit, want string }{
		{"a plain command", "[Service]\nExecStart=/a/b c d\n", "/a/b"},
		{"prefixes", "[Service]\nExecStart=-+/a/b\n", "/a/b"},
		{"quotes", "[Service]\nExecStart=\"/a b/c\" d\n", "/a b/c"},
		{"the first that counts", "[Service]\nExecStart=\nExecStart=/a\n", "/a"},
		{"none", "[Unit]\nExecStart=/a\n", ""},
		{"no path", "[Service]\nExecStart=a\n", ""},
	} {
		if got := programOf([]byte(tt.unit)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.row, got, tt.want)
		}
	}
}

// A package that comes to a host where an install was made takes over all of
// it, and an uninstall then leaves the package's files and says what they do.
func TestInstallHandsOverToAPackage(t *testing.T) {
	h := newHost(t, systemd252)
	before := h.snapshot()
	var rec record
	c := h.config()
	c.Record, c.Owned = rec.add, rec.owned
	mustInstall(t, c)
	h.write(pkgPath, pkgUnit)
	h.write(PackageProgram, "ELF")

	mustInstall(t, c)
	for _, gone := range []string{servicePath, BinaryPath, "/opt/firsthop"} {
		if _, err := os.Lstat(h.path(gone)); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
	if target, err := os.Readlink(h.path(serviceLink)); err != nil || target != pkgPath {
		t.Errorf("the link that enables it leads to %q, %v", target, err)
	}
	if _, err := exec.LookPath("systemctl"); err == nil {
		out, _ := exec.Command("systemctl", "--root="+h.root, "is-enabled", ServiceName).CombinedOutput()
		if got := strings.TrimSpace(string(out)); got != "enabled" {
			t.Errorf("systemctl is-enabled says %q", got)
		}
	}

	mustUninstall(t, c)
	after := h.snapshot()
	for _, of := range []string{pkgPath, PackageProgram} {
		if _, there := after[of]; !there {
			t.Errorf("uninstall removed %s", of)
		}
	}
	for _, link := range h.config().links(t) {
		t.Errorf("uninstall left %s, which the install had made", link)
	}
	for name := range before {
		if _, there := after[name]; !there {
			t.Errorf("%s is gone", name)
		}
	}
}

func (c Config) links(t *testing.T) []string {
	t.Helper()
	return (&files{t: newTree(c)}).links(ServiceName)
}

// What the package's own scripts enabled is not ours to disable, but to name.
func TestUninstallNamesAPackagedUnitThatStaysEnabled(t *testing.T) {
	h := newHost(t, with(systemd252, pkgPath, pkgUnit, PackageProgram, "ELF", serviceLink, "-> "+pkgPath))
	before := h.snapshot()
	c := h.config()
	c.Owned = func(instance.Kind, string) bool { return false }
	r := mustUninstall(t, c)
	h.same(before, "uninstall")
	if all := strings.Join(append(r.Warnings, r.Statement), "\n"); !strings.Contains(all, pkgPath+" is a package's and stays enabled") ||
		!strings.Contains(r.Statement, "After a reboot "+pkgPath+" starts firsthop again") {
		t.Errorf("it says:\n%s", all)
	}
}

// A package's unit has no arguments of this run.
func TestInstallNamesSettingsThatAPackagedUnitLacks(t *testing.T) {
	h := newHost(t, with(systemd252, pkgPath, pkgUnit, PackageProgram, "ELF"))
	c := h.config()
	c.Args = []string{"init", "--boot", "--scope", "host"}
	r, err := PlanInstall(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(r.Warnings, "\n"); !strings.Contains(all, `["--scope" "host"]`) || !strings.Contains(all, EnvironmentFile) {
		t.Errorf("it says:\n%s", all)
	}
}
