package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hostWithSystemd lays out a host whose systemd 252 runs, as far as its files tell.
func hostWithSystemd(t *testing.T) (root string) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "host")
	for _, dir := range []string{"run/systemd/system", "etc/systemd/system", "usr/lib/x86_64-linux-gnu/systemd", "opt", "var/lib", "proc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range map[string]string{
		"usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so": "",
		"etc/os-release": "ID=debian\nVERSION_ID=12\n",
	} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("proc", root+"/proc", "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root+"/proc", unix.MNT_DETACH) })
	return root
}

// startLine is the command that the boot unit runs.
func startLine(t *testing.T, unit string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindStringSubmatch(unit)
	if m == nil {
		t.Fatalf("no ExecStart in\n%s", unit)
	}
	return m[1]
}

// TestInitBootUnitKeepsTheSettings as the host has them: it runs there, without this run's mounts and environment.
func TestInitBootUnitKeepsTheSettings(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	addresses := []string{"--service-ips", vip4, "--endpoints", server4}
	for _, tc := range []struct {
		name string
		env  []string
		line func(root string) []string
		want string // behind the program's path
	}{
		{"nothing but addresses", nil, func(string) []string { return nil }, "init --boot"},
		{"sizes", nil, func(string) []string {
			return []string{"--max-frontends", "2048", "--max-services", "4096", "--max-backends", "8192"}
		}, "init --boot --max-frontends 2048 --max-services 4096 --max-backends 8192"},
		{"directories below the root", nil, func(root string) []string {
			return []string{"--state-dir", root + "/var/lib/other", "--run-dir", root + "/run/other"}
		}, "init --boot --state-dir /var/lib/other --run-dir /run/other"},
		{"scope, UDP and Services", nil, func(string) []string {
			return []string{"--scope", "host", "--udp=false", "--extra-service", extra4 + ",127.0.0.2:5353", "--extra-service", extra6}
		}, "init --boot --scope host --udp=false --extra-service " + extra4 + ",127.0.0.2:5353 --extra-service " + extra6},
		{"the environment's", []string{"FIRSTHOP_MAX_BACKENDS=4096", "FIRSTHOP_UDP=false", "FIRSTHOP_FORBID_FEATURE=batch"}, func(string) []string { return nil },
			"init --boot --max-backends 4096 --udp=false --forbid-feature batch"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := hostWithSystemd(t)
			line := append(tc.env, "install", "--root", root)
			line = append(append(line, addresses...), tc.line(root)...)
			plain(t, append(line, "--dry-run")...).exits(0).says("would: write /etc/systemd/system/firsthop-init.service")
			plain(t, line...).exits(0)
			unit, err := os.ReadFile(filepath.Join(root, "etc/systemd/system/firsthop-init.service"))
			if err != nil {
				t.Fatal(err)
			}
			if got := startLine(t, string(unit)); got != "/opt/firsthop/bin/firsthop "+tc.want {
				t.Errorf("ExecStart=%s\nwant %s", got, tc.want)
			}
			if strings.Contains(string(unit), root) {
				t.Errorf("the unit has paths that the host doesn't have:\n%s", unit)
			}
			r := plain(t, append(line, "--dry-run")...).exits(0)
			if strings.Contains(r.stdout, "would:") {
				t.Errorf("there is still something to do:\n%s", r.stdout)
			}
			gone := []string{"uninstall", "--root", root}
			if strings.Contains(tc.want, "/var/lib/other") {
				gone = append(gone, tc.line(root)...)
			}
			plain(t, gone...).exits(0)
			left, err := exec.Command("find", root+"/opt", root+"/etc", root+"/var", root+"/run", "-name", "*firsthop*").Output()
			if err != nil || len(left) > 0 {
				t.Errorf("an uninstall leaves %s, %v", left, err)
			}
		})
	}
}

// TestInitAtBootChangesNoUnit: its environment isn't that of the run which installed the unit.
func TestInitAtBootChangesNoUnit(t *testing.T) {
	n := newNode(t)
	n.echo("tcp", "b4", server4)
	n.echo("tcp", "b6", server6)
	out, err := n.onMachine(`
		mkdir -p /run/systemd/system /etc/systemd/system
		units() { find /etc /opt -printf '%p %M %i %C@ %s %l\n' | sort; }
		firsthop init --max-backends 2048 --extra-service ` + extra4 + `
		cat /etc/systemd/system/firsthop-init.service
		units >/tmp/` + n.Name + `/before
		eval $(sed -n 's/^ExecStart=//p' /etc/systemd/system/firsthop-init.service)
		umount /sys/fs/bpf && rm -r /run/firsthop # as a reboot
		unset ` + varVIPs + ` ` + varServer + `
		eval $(sed -n 's/^ExecStart=//p' /etc/systemd/system/firsthop-init.service)
		units >/tmp/` + n.Name + `/boot
		firsthop nat
		firsthop status
		` + client + ` tcp ` + vip4 + ` x
		firsthop init --max-backends 2048 --extra-service ` + extra4 + `
		units >/tmp/` + n.Name + `/again
		firsthop status
		firsthop uninstall --force`)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r := result{T: t, stdout: out}
	r.says("init --boot --max-backends 2048 --extra-service "+extra4, "the boot unit runs this again", "udp/"+dns4, `"peer":"`+vip4, "serving; proven")
	before, err := os.ReadFile(filepath.Join(n.Dir, "before"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(before), "firsthop-init.service") {
		t.Errorf("no unit was installed:\n%s", out)
	}
	for _, when := range []string{"boot", "again"} {
		after, err := os.ReadFile(filepath.Join(n.Dir, when))
		if err != nil || string(after) != string(before) {
			t.Errorf("%s: %v: changed are\n%s\nbefore\n%s", when, err, after, before)
		}
	}
}
