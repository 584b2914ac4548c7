package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// node is a root directory with a shell, in which scripts of packages are run as on a node of its own. What a real dpkg,
// rpm and systemd make of them is tested in test/vm.
type node struct{ dir string }

// enter mounts a node's libraries and /proc, in a mount and a PID namespace of their own. With exec the script is PID 1,
// as far as it can see; without, PID 1 has another root, as in a chroot.
const enter = `set -e
for d in lib lib64 usr/lib usr/lib64; do if [ -d /$d ]; then mkdir -p "$ROOT/$d"; mount --bind /$d "$ROOT/$d"; fi; done
mkdir -p "$ROOT/proc"
mount -t proc proc "$ROOT/proc"
`

// said is what the stand-in for firsthop writes its arguments to.
const said = "/called"

func newNode(t *testing.T) node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	n := node{t.TempDir()}
	for _, name := range []string{"sh", "rm", "sleep", "chmod"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		n.write(t, "/usr/bin/"+name, string(data))
	}
	if err := os.Symlink("usr/bin", n.dir+"/bin"); err != nil {
		t.Fatal(err)
	}
	// It undoes its job unless a file says that nothing else serves, or that the node needs it to start.
	n.write(t, "/usr/bin/firsthop", "#!/bin/sh\necho \"$@\" >>"+said+"\nif [ -e /stranded ]; then echo kubelet.conf; exit 8; fi\n"+
		"case \"$*\" in *--dry-run*) exit 0 ;; esac\nif [ -e /alone ]; then echo 'nothing else serves'; exit 1; fi\necho undone\n")
	for _, name := range []string{"systemctl", "deb-systemd-helper", "deb-systemd-invoke"} {
		n.write(t, "/usr/bin/"+name, "#!/bin/sh\necho "+name+" \"$@\" >>"+said+"\n")
	}
	n.write(t, "/run/systemd/system/x", "")
	n.write(t, "/dev/null", "")
	n.write(t, "/var/lib/firsthop/apiserver.json", "{}")
	n.write(t, "/etc/systemd/system/multi-user.target.wants/firsthop-init.service", "")
	n.write(t, runtimeLink, "")
	return n
}

func (n node) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(n.dir+name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.dir+name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func (n node) has(name string) bool {
	_, err := os.Lstat(n.dir + name)
	return err == nil
}

// run runs a script as the package managers do, with one argument, and returns what was said and what was called.
func (n node) run(t *testing.T, script, argument string, inChroot bool) (out, called string) {
	t.Helper()
	out, called, err := n.try(t, script, argument, inChroot)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", script, argument, err, out)
	}
	return out, called
}

// try is run for a script that may fail.
func (n node) try(t *testing.T, script, argument string, inChroot bool) (out, called string, err error) {
	t.Helper()
	n.write(t, "/script", script)
	how := `exec chroot "$ROOT" `
	if inChroot {
		how = `chroot "$ROOT" `
	}
	cmd := exec.Command("sh", "-c", enter+how+"sh /script "+argument+"\nexit $?")
	cmd.Env = append(os.Environ(), "ROOT="+n.dir, "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	// Go makes the mounts private after unshare(2): none of them is seen outside.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS}
	text, err := cmd.CombinedOutput()
	return string(text), n.called(t), err
}

// called is what was called until now.
func (n node) called(t *testing.T) string {
	t.Helper()
	list, err := os.ReadFile(n.dir + said)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(list)
}

func packageScripts(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, file := range write(t, newBuild(t))[:2] {
		c := readDeb
		if filepath.Ext(file) == ".rpm" {
			c = readRPM
		}
		for name, text := range c(t, file).scripts {
			all[name] = text
		}
	}
	return all
}

// own is the unit of `firsthop install`.
const own = "/etc/systemd/system/firsthop-init.service"

// runtimeLink is what systemctl enable makes.
const runtimeLink = "/etc/systemd/system/multi-user.target.wants/firsthop.service"

func TestRemovalScripts(t *testing.T) {
	scripts := packageScripts(t)
	for _, tc := range []struct {
		name             string
		deb, rpm         string // script and argument
		files            []string
		removed          string
		running          bool
		chroot           bool
		says             string
		undoes, disables bool
		state            bool // is still there
	}{
		{name: "a removal undoes what serves", deb: "prerm remove", rpm: "preun 0", says: "undone", undoes: true, disables: true, state: true},
		{name: "a removal where nothing else serves is done all the same", deb: "prerm remove", rpm: "preun 0", files: []string{"/alone"},
			says: "stays until the next reboot", undoes: true, disables: true, state: true},
		{name: "an upgrade undoes nothing", deb: "prerm upgrade", rpm: "preun 1", state: true},
		{name: "a removal in a chroot leaves the host alone", deb: "prerm remove", rpm: "preun 0", chroot: true, disables: true, state: true},
		{name: "a removal on a system that is not booted undoes nothing", deb: "prerm remove", rpm: "preun 0", removed: "/run/systemd/system", disables: true, state: true},
		{name: "a removal beside an install undoes nothing", deb: "prerm remove", rpm: "preun 0", files: []string{own}, says: own + " is not of this package", state: true},
		{name: "a removal beside a running firsthop undoes nothing", deb: "prerm remove", rpm: "preun 0", running: true, says: "another firsthop runs", disables: true, state: true},
		{name: "a removal whose program is gone goes on", deb: "prerm remove", rpm: "preun 0", removed: "/usr/bin/firsthop", disables: true, state: true},
		{name: "the end of an upgrade keeps the state", deb: "postrm upgrade", rpm: "postun 1", state: true},
		{name: "the end of a removal keeps the state, but for rpm", deb: "postrm remove", state: true},
		{name: "a purge forgets", deb: "postrm purge", rpm: "postun 0"},
		{name: "a purge beside an install forgets nothing", deb: "postrm purge", rpm: "postun 0", files: []string{own}, state: true},
	} {
		for _, call := range []string{tc.deb, tc.rpm} {
			if call == "" {
				continue
			}
			t.Run(fmt.Sprintf("%s, %s", tc.name, call), func(t *testing.T) {
				n := newNode(t)
				for _, name := range tc.files {
					n.write(t, name, "")
				}
				if tc.removed != "" {
					if err := os.RemoveAll(n.dir + tc.removed); err != nil {
						t.Fatal(err)
					}
				}
				script, argument, _ := strings.Cut(call, " ")
				text := scripts[script]
				if tc.running {
					n.write(t, "/other/firsthop", "#!/bin/sh\nsleep 100\n")
					text = "/other/firsthop &\nuntil read -r name </proc/$!/comm && [ \"$name\" = firsthop ]; do :; done\n" + text
				}
				out, called := n.run(t, text, argument, tc.chroot)
				if undone := strings.Contains(called, "uninstall --log-level"); undone != tc.undoes || strings.Contains(called, "--force") {
					t.Errorf("uninstall was called: %v\n%s", undone, called)
				}
				if !strings.Contains(out, tc.says) || tc.says == "" && out != "" {
					t.Errorf("it says %q, want %q", out, tc.says)
				}
				if disabled := strings.Contains(called, "disable firsthop-init.service"); disabled != (tc.disables && script == "preun") {
					t.Errorf("the unit was disabled: %v", disabled)
				}
				if n.has("/var/lib/firsthop") != tc.state {
					t.Errorf("the state is there: %v", !tc.state)
				}
				if script == "postrm" && n.has("/etc/systemd/system/multi-user.target.wants/firsthop-init.service") != tc.state {
					t.Errorf("the link that enables the unit is there: %v", !tc.state)
				}
				// Its program goes, so the runtime must not go on with it; an upgrade has a new one.
				removal := (call == "prerm remove" || call == "preun 0") && !tc.chroot && tc.removed != "/run/systemd/system"
				if stops := strings.Contains(called, "systemctl stop firsthop.service\n"); stops != removal {
					t.Errorf("the runtime is stopped: %v\n%s", stops, called)
				}
				if strings.Contains(called, "stop firsthop-init") || strings.Contains(called, "start") || strings.Contains(called, "--now") {
					t.Errorf("something else is stopped:\n%s", called)
				}
				if disabled := strings.Contains(called, "disable firsthop.service\n"); disabled != (call == "preun 0") {
					t.Errorf("the runtime's unit is disabled: %v\n%s", disabled, called)
				}
				if call == "postrm purge" && n.has(runtimeLink) {
					t.Error("the link that enables the runtime is there")
				}
			})
		}
	}
}

// TestRemovalScriptsFailWhereTheNodeWouldBeStranded: its boot unit goes with the package, and the node needs it.
func TestRemovalScriptsFailWhereTheNodeWouldBeStranded(t *testing.T) {
	scripts := packageScripts(t)
	for _, tc := range []struct {
		call  string
		also  string // is there too
		fails bool
	}{
		{"prerm remove", "", true},
		{"preun 0", "", true},
		{"prerm upgrade", "", false},
		{"preun 1", "", false},
		{"prerm remove", own, false}, // the install without the package serves on
		{"preun 0", own, false},
	} {
		t.Run(tc.call+" "+tc.also, func(t *testing.T) {
			n := newNode(t)
			n.write(t, "/stranded", "")
			if tc.also != "" {
				n.write(t, tc.also, "")
			}
			script, argument, _ := strings.Cut(tc.call, " ")
			out, called, err := n.try(t, scripts[script], argument, false)
			if failed := err != nil; failed != tc.fails {
				t.Fatalf("failed: %v\n%s", failed, out)
			}
			if !tc.fails {
				return
			}
			if !strings.Contains(out, "kubelet.conf") || !strings.Contains(out, "uninstall --force") {
				t.Errorf("it does not say why, and what to do:\n%s", out)
			}
			if called != "uninstall --dry-run\n" {
				t.Errorf("it called\n%s", called)
			}
		})
	}
}

func TestInstallationScripts(t *testing.T) {
	scripts := packageScripts(t)
	const restart = "systemctl daemon-reload\nsystemctl try-restart firsthop.service\n"
	for _, tc := range []struct{ name, call, says, calls, not, removed string }{
		{"a first .deb enables", "postinst configure", "runs at the next boot", "deb-systemd-helper enable", "start", ""},
		{"the next one is quiet", "postinst configure 0.1.0", "", "deb-systemd-helper enable", " start", ""},
		{"the next one restarts a runtime that runs, as policy-rc.d lets it", "postinst configure 0.1.0", "", "systemctl daemon-reload\ndeb-systemd-invoke try-restart firsthop.service\n", "\nsystemctl try-restart", ""},
		{"where there is nobody to ask, it does so too", "postinst configure 0.1.0", "", restart, "deb-systemd-invoke", "/usr/bin/deb-systemd-invoke"},
		{"an upgrade that was taken back restarts nothing", "postinst abort-upgrade 0.2.0", "", "systemctl daemon-reload", "start", ""},
		{"nor does one where systemd does not run", "postinst configure 0.1.0", "", "deb-systemd-helper enable", "start", "/run/systemd/system"},
		{"a first .rpm asks the presets", "post 1", "runs at the next boot", "systemctl --no-reload preset", "start", ""},
		{"the next one does not", "post 2", "", "systemctl daemon-reload", "preset", ""},
		{"it restarts a runtime that runs", "post 2", "", restart, " start", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			if tc.removed != "" {
				if err := os.RemoveAll(n.dir + tc.removed); err != nil {
					t.Fatal(err)
				}
			}
			script, arguments, _ := strings.Cut(tc.call, " ")
			out, called := n.run(t, scripts[script], arguments, false)
			if !strings.Contains(out, tc.says) || tc.says == "" && out != "" {
				t.Errorf("it says %q, want %q", out, tc.says)
			}
			if !strings.Contains(called, tc.calls) || strings.Contains(called, tc.not) || strings.Contains(called, "init --boot") {
				t.Errorf("it calls\n%s", called)
			}
		})
	}
}
