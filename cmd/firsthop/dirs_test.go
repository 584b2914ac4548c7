package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/natinit/instance"
)

// TestDirsOfOthersDecideNothing: with run and state directories that another user owns or may write, a node is
// served, root writes through no link of theirs, uninstall removes nothing that they list, and all say why.
func TestDirsOfOthersDecideNothing(t *testing.T) {
	for name, give := range map[string]func(dir string) error{
		"owned by nobody":     func(dir string) error { return os.Chown(dir, 65534, 65534) },
		"writable by all":     func(dir string) error { return unix.Chmod(dir, 0o777) },
		"writable by a group": func(dir string) error { return unix.Chmod(dir, 0o770) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.serving()
			for _, dir := range []string{n.RunDir, n.StateDir} {
				if err := give(dir); err != nil {
					t.Fatal(err)
				}
			}
			victim := filepath.Join(n.Dir, "victim")
			precious := func(when string) {
				t.Helper()
				if data, err := os.ReadFile(filepath.Join(victim, "file")); err != nil || string(data) != "precious" {
					t.Fatalf("%s: the victim has %q, %v", when, data, err)
				}
			}
			if err := os.MkdirAll(filepath.Join(victim, "empty"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(victim, "file"), []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			line := []string{"init", "--service-ips", vips, "--endpoints", servers}
			for _, file := range []string{
				filepath.Join(n.RunDir, instance.StatusName), filepath.Join(n.RunDir, instance.JournalName), filepath.Join(n.RunDir, instance.RuntimeLockName),
				filepath.Join(n.StateDir, "apiserver.json"), filepath.Join(n.StateDir, instance.JournalName),
			} {
				os.Remove(file)
				if err := os.Symlink(filepath.Join(victim, "file"), file); err != nil {
					t.Fatal(err)
				}
				n.run(line...).exits(0).says("run directory "+n.RunDir, "state directory "+n.StateDir, "can be changed by others than root", "are not saved")
				precious("init with a link at " + file)
				os.Remove(file)
			}
			n.checkServes()
			if err := os.Symlink(filepath.Join(victim, "file"), filepath.Join(n.RunDir, "x")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(n.RunDir, "x"), filepath.Join(n.RunDir, instance.LockName)); err != nil {
				t.Fatal(err)
			}
			n.run(line...).exits(bootstrap.ExitInternal).says("failed at lock", "symbolic link")
			precious("init with a link for a lock")
			os.Remove(filepath.Join(n.RunDir, instance.LockName))
			n.run("status").exits(0).says("can be changed by others than root")
			if out := n.run("doctor").stdout; !strings.Contains(out, "is not believed") {
				t.Errorf("doctor doesn't report it:\n%s", out)
			}
			forged := `[{"kind":"mkdir","target":"` + victim + `/empty"},{"kind":"dir","target":"` + victim + `/empty"},{"kind":"file","target":"` + victim + `/file"},{"kind":"mount","target":"` + n.BPFFS + `"}]`
			for _, dir := range []string{n.RunDir, n.StateDir} {
				if err := os.WriteFile(filepath.Join(dir, instance.JournalName), []byte(forged), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n.run("uninstall", "--force").exits(0)
			precious("uninstall")
			if _, err := os.Stat(filepath.Join(victim, "empty")); err != nil {
				t.Error("uninstall removed a directory that a forged journal lists:", err)
			}
		})
	}
}

// TestDirsThatCannotBe are refused at once, before anything is changed.
func TestDirsThatCannotBe(t *testing.T) {
	n := newNode(t)
	n.serving()
	file := filepath.Join(n.Dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := n.snapshot()
	for _, flag := range []string{"--run-dir", "--state-dir", "--bpffs", "--cgroup", "--root"} {
		for _, command := range [][]string{initArgs(), {"uninstall"}, {"status"}, {"install"}, {"discover"}} {
			for path, want := range map[string]string{file: "it is a file", file + "/below": "not a directory", "relative": "absolute path"} {
				n.run(append(command, flag, path)...).exits(bootstrap.ExitUsage).says(flag, path, want)
			}
		}
	}
	n.run(initArgs("--run-dir", "/proc/none", "--lock-timeout", "1h")...).exits(bootstrap.ExitInternal).says("/proc/none", "no directory can be made")
	n.unchanged(before)
}
