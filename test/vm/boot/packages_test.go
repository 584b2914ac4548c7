package boot

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/test/vm/kube"
	"github.com/firsthop/firsthop/test/vm/wire"
)

const (
	packages    = "/run/packages" // in two versions
	pkgSettings = "/etc/default/firsthop"
	pkgUnit     = "/usr/lib/systemd/system/" + unit
	edited      = "KUBERNETES_SERVICE_IPS_PORTS=" + vip + "\nKUBERNETES_APISERVER_ENDPOINTS=" + servers + "\n"
)

// mustRun runs a program that must be done.
func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, code := run(t, name, args...)
	t.Logf("%s %s: %d\n%s", name, strings.Join(args, " "), code, out)
	if code != 0 {
		t.Errorf("%s %s: exit code %d", name, strings.Join(args, " "), code)
	}
	return out
}

// patiently runs firsthop until it is done. It gives systemd 20 s, of which a reload in a machine that is emulated beside
// others has been seen to take more; the next run then completes what was begun.
func patiently(t *testing.T, name string, args ...string) string {
	t.Helper()
	for range 2 {
		out, code := run(t, name, args...)
		if code == 0 || !strings.Contains(out, "context deadline exceeded") {
			t.Logf("%s %s: %d\n%s", name, strings.Join(args, " "), code, out)
			if code != 0 {
				t.Errorf("%s: exit code %d", name, code)
			}
			return out
		}
		t.Logf("%s %s: %d, again\n%s", name, strings.Join(args, " "), code, out)
	}
	return mustRun(t, name, args...)
}

// packageFile is the path of a package of a version: of the form that pattern has, as "firsthop_%_amd64.deb".
func packageFile(t *testing.T, pattern, version string) string {
	t.Helper()
	file := filepath.Join(packages, version, strings.Replace(pattern, "%", version, 1))
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err)
	}
	return file
}

func debFile(t *testing.T, version string) string {
	t.Helper()
	return packageFile(t, "firsthop_%_amd64.deb", version)
}

func rpmFile(t *testing.T, version string) string {
	t.Helper()
	return packageFile(t, "firsthop-%-1.x86_64.rpm", version)
}

// needsDpkg gives dpkg a database, which the system, made without running it, has not.
func needsDpkg(t *testing.T) {
	t.Helper()
	needsSystem(t)
	for _, dir := range []string{"/var/lib/dpkg/info", "/var/lib/dpkg/updates", "/var/lib/dpkg/triggers"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"status", "available"} {
		f, err := os.OpenFile("/var/lib/dpkg/"+name, os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}

func wantAbsent(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is there", path)
		}
	}
}

func wantThere(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
}

func wantSaid(t *testing.T, out, want string) {
	t.Helper()
	if !strings.Contains(out, want) {
		t.Errorf("it does not say %q", want)
	}
}

// TestPackageTakesOver installs a package where `firsthop install` was before: its unit and program go, in favour of the
// package's, and nothing of traffic is touched.
func TestPackageTakesOver(t *testing.T) {
	needsDpkg(t)
	patiently(t, filepath.Join(wire.SystemDir, "firsthop"), "install", "--service-ips", vip, "--endpoints", servers)
	wantThere(t, installed, "/etc/systemd/system/"+unit)

	out := mustRun(t, "dpkg", "--install", debFile(t, "0.1.0"))
	wantSaid(t, out, "runs at the next boot")
	wantThere(t, pkgUnit, pkgSettings, "/usr/share/man/man8/firsthop.8.gz")
	wantState(t, "is-enabled", unit, "enabled")
	if err := os.WriteFile(pkgSettings, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	out = patiently(t, "/usr/bin/firsthop", "install")
	wantSaid(t, out, pkgUnit)
	wantAbsent(t, "/opt/firsthop", "/etc/systemd/system/"+unit)
	wantState(t, "is-enabled", unit, "enabled")
	if got := property(t, unit, "FragmentPath"); !strings.HasSuffix(got, strings.TrimPrefix(pkgUnit, "/usr")) {
		t.Errorf("systemd has the unit from %s", got)
	}
	if out = mustRun(t, "/usr/bin/firsthop", "units"); strings.Contains(out, "install would") {
		t.Error("a second install would change something")
	}
	wantState(t, "is-active", unit, "inactive")
	if got := attached(t); len(got) > 0 || greeted(kube.Visit(vip)) {
		t.Errorf("an install touched traffic: %q", got)
	}
}

// TestPackageUpgrade comes after TestBoot: programs stay as they are, connections come through at any moment, and what
// the administrator has said holds.
func TestPackageUpgrade(t *testing.T) {
	needsDpkg(t)
	if got := property(t, unit, "FragmentPath"); !strings.HasSuffix(got, strings.TrimPrefix(pkgUnit, "/usr")) {
		t.Errorf("the boot's unit was %s", got)
	}
	wantSaid(t, mustRun(t, "/usr/bin/firsthop", "version"), "v0.1.0")
	before := attached(t)
	kube.WhileConnecting(t, vip, greeting, func() { mustRun(t, "dpkg", "--install", debFile(t, "0.2.0")) })
	wantSaid(t, mustRun(t, "/usr/bin/firsthop", "version"), "v0.2.0")
	if after := attached(t); !slices.Equal(before, after) || len(after) == 0 {
		t.Errorf("programs were %q and are %q", before, after)
	}
	wantState(t, "is-active", unit, "active")
	if data, err := os.ReadFile(pkgSettings); err != nil || string(data) != edited {
		t.Errorf("%s has %q, %v", pkgSettings, data, err)
	}
	mustRun(t, "systemctl", "disable", unit)
	mustRun(t, "dpkg", "--install", debFile(t, "0.2.0"))
	wantState(t, "is-enabled", unit, "disabled")
	mustRun(t, "systemctl", "enable", unit)
	mustRun(t, "sync") // dpkg sees to its own files, but the power is cut now
}

// TestPackageRemoveKeepsServing comes after TestBoot: who removes the package does not cut the node off.
func TestPackageRemoveKeepsServing(t *testing.T) {
	needsDpkg(t)
	before := attached(t)
	out := mustRun(t, "dpkg", "--remove", "firsthop")
	wantSaid(t, out, "nothing else serves the Service addresses")
	wantSaid(t, out, "stays until the next reboot")
	if after := attached(t); !slices.Equal(before, after) || len(after) == 0 {
		t.Errorf("programs were %q and are %q", before, after)
	}
	if saw := kube.Visit(vip); saw != greeting {
		t.Errorf("the Service IP says %q", saw)
	}
	wantAbsent(t, pkgUnit, "/usr/bin/firsthop")
	wantThere(t, pkgSettings, "/var/lib/firsthop/apiserver.json")
}

// TestPackagePurge is for the boot after the removal.
func TestPackagePurge(t *testing.T) {
	needsDpkg(t)
	wantKubelet(t, refused)
	if got := attached(t); len(got) > 0 {
		t.Errorf("programs: %q", got)
	}
	mustRun(t, "dpkg", "--purge", "firsthop")
	noPackageTrace(t)
}

// TestPackageRespectsPreset comes after TestPackagePurge, in the same boot.
func TestPackageRespectsPreset(t *testing.T) {
	needsDpkg(t)
	const preset = "/etc/systemd/system-preset/10-test.preset"
	if err := os.MkdirAll(filepath.Dir(preset), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(preset, []byte("disable firsthop-*\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	wantSaid(t, mustRun(t, "dpkg", "--install", debFile(t, "0.1.0")), "leave "+unit+" disabled")
	wantState(t, "is-enabled", unit, "disabled")
	mustRun(t, "dpkg", "--purge", "firsthop")
	out := mustRun(t, "rpm", "--install", rpmFile(t, "0.1.0"))
	wantState(t, "is-enabled", unit, "disabled")
	wantSaid(t, out, "leave "+unit+" disabled")
	mustRun(t, "rpm", "--erase", "firsthop")
	if err := os.RemoveAll(filepath.Dir(preset)); err != nil {
		t.Fatal(err)
	}
	noPackageTrace(t)
}

// TestPackageRemoveBesideKubeProxy is for a boot in which a stand-in of kube-proxy serves the Service IP: a removal then
// undoes all at once.
func TestPackageRemoveBesideKubeProxy(t *testing.T) {
	needsDpkg(t)
	mustRun(t, "dpkg", "--install", debFile(t, "0.2.0"))
	initByHand(t)
	mustRun(t, "dpkg", "--purge", "firsthop")
	wantKubeProxy(t)
	noPackageTrace(t)
}

// TestRPM comes after TestPackageRemoveBesideKubeProxy, in the same boot. The rpm command is Debian's.
func TestRPM(t *testing.T) {
	needsSystem(t)
	out := mustRun(t, "rpm", "--install", rpmFile(t, "0.1.0"))
	wantSaid(t, out, "runs at the next boot")
	wantState(t, "is-enabled", unit, "enabled")
	wantState(t, "is-active", unit, "inactive")
	initByHand(t)
	if err := os.WriteFile(pkgSettings, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	before := attached(t)
	mustRun(t, "rpm", "--upgrade", rpmFile(t, "0.2.0"))
	if after := attached(t); !slices.Equal(before, after) || len(after) == 0 {
		t.Errorf("programs were %q and are %q", before, after)
	}
	wantState(t, "is-enabled", unit, "enabled")
	wantSaid(t, mustRun(t, "/usr/bin/firsthop", "version"), "v0.2.0")
	if data, err := os.ReadFile(pkgSettings); err != nil || string(data) != edited {
		t.Errorf("%s has %q, %v", pkgSettings, data, err)
	}
	mustRun(t, "rpm", "--erase", "firsthop")
	wantKubeProxy(t)
	saved := pkgSettings + ".rpmsave" // what the administrator wrote is kept
	wantThere(t, saved)
	if err := os.Remove(saved); err != nil {
		t.Error(err)
	}
	noPackageTrace(t)
}

func initByHand(t *testing.T) {
	t.Helper()
	patiently(t, "/usr/bin/firsthop", "init", "--service-ips", vip, "--endpoints", servers)
	wantAbsent(t, "/opt/firsthop", "/etc/systemd/system/"+unit)
	if got := attached(t); len(got) == 0 {
		t.Error("init attached nothing")
	}
	if saw := kube.Visit(vip); saw != greeting {
		t.Errorf("after init the Service IP says %q", saw)
	}
}

// wantKubeProxy wants the Service IP to be kube-proxy's alone.
func wantKubeProxy(t *testing.T) {
	t.Helper()
	if saw := kube.Visit(vip); saw != kubeProxyGreeting {
		t.Errorf("the Service IP says %q", saw)
	}
}

// ofManagers are databases, and directories that are of another package on a system of rpm's, whose rpm leaves them.
var ofManagers = []string{
	"/var/lib/dpkg", "/var/lib/rpm", "/root/.rpmdb", "/usr/lib/sysimage/rpm",
	"/usr/share/doc mode", "/usr/share/man mode", "/usr/share/man/man8 mode",
}

// noPackageTrace compares the machine with what it was before firsthop came, but for what is the package managers' own.
func noPackageTrace(t *testing.T) {
	t.Helper()
	if got := property(t, unit, "LoadState"); got != "not-found" {
		t.Errorf("%s: %s", unit, got)
	}
	if got := append(attached(t), pins(t)...); len(got) > 0 {
		t.Errorf("still there: %q", got)
	}
	wantAbsent(t, "/run/firsthop")
	data, err := os.ReadFile(before)
	if err != nil {
		t.Fatal(err)
	}
	was, is := strings.Split(string(data), "\n"), onDisk(t)
	for _, diff := range []struct {
		of, from []string
		when     string
	}{{is, was, "now"}, {was, is, "before"}} {
		for _, line := range diff.of {
			managers := slices.ContainsFunc(ofManagers, func(p string) bool { return strings.HasPrefix(line, p) })
			if !managers && !slices.Contains(diff.from, line) {
				t.Errorf("on the disk %s: %s", diff.when, line)
			}
		}
	}
}
