package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/test/lab"
)

// What a hostile user found.

func TestUninstallSetsADamagedJournalAside(t *testing.T) {
	for name, dir := range map[string]func(node) string{
		"in the run directory":   func(n node) string { return n.RunDir },
		"in the state directory": func(n node) string { return n.StateDir },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.serving()
			list := filepath.Join(dir(n), instance.JournalName)
			if err := os.WriteFile(list, []byte("[{"), 0o600); err != nil {
				t.Fatal(err)
			}
			n.run(initArgs("--persist", "auto")...).exits(0).says("set aside as " + list + ".damaged")
			n.checkServes()
			if kept, err := os.ReadFile(list + ".damaged"); err != nil || string(kept) != "[{" {
				t.Errorf("the damaged list is %q, %v", kept, err)
			}
			if err := os.WriteFile(list, []byte("[{"), 0o600); err != nil {
				t.Fatal(err)
			}
			n.run("uninstall", "--force").exits(0).says("set aside as " + list + ".damaged")
			if left, _ := os.ReadDir(dir(n)); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestStatusReadsNoFIFO(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.init()
	status := filepath.Join(n.RunDir, instance.StatusName)
	n.without(status)
	if err := unix.Mkfifo(status, 0o600); err != nil {
		t.Fatal(err)
	}
	n.run("status").exits(0).says("not a regular file")
}

func TestInitKeepsAProvenFamilyBesideADeadOne(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.run("init", "--persist", "off", "--timeout", "500ms", "--service-ips", vips, "--endpoints", server4+",[::1]:6499").
		exits(bootstrap.ExitProof).says(vip4+" answered", "what works is kept")
	n.run("init", "--persist", "off", "--service-ips", vip4, "--endpoints", server4).exits(0)
	n.run("status").exits(0)
}

func TestFlagsForDirsAreNotEmpty(t *testing.T) {
	n := newNode(t)
	for _, flag := range []string{"--cgroup", "--bpffs", "--run-dir", "--state-dir", "--root"} {
		for _, command := range []string{"init", "status", "uninstall", "check"} {
			n.run(command, flag+"=").exits(bootstrap.ExitUsage).says(flag + " is given, but empty")
		}
	}
}

// A container, or a lazy unmount, can hide a bpffs while its links go on serving.
func TestInitTakesOverProgramsOfAHiddenTable(t *testing.T) {
	for name, flags := range map[string][]string{
		"by links":       nil,
		"by prog_attach": {"--forbid-feature", "cgroup-link"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.serving()
			n.run(initArgs(flags...)...).exits(0)
			held, err := os.Open(n.pins().Maps())
			if err != nil {
				t.Fatal(err)
			}
			defer held.Close()
			if err := unix.Unmount(n.BPFFS, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			n.run(initArgs(flags...)...).exits(0)
			if got := n.attached(); len(got) != 8 {
				t.Errorf("attached are %v, want one program a hook", got)
			}
			n.run("uninstall", "--force").exits(0)
			lab.Await(t, "programs to detach", func() bool { return len(n.attached()) == 0 })
		})
	}
}

func TestUninstallKnowsItsInstance(t *testing.T) {
	n := newNode(t)
	n.serving()
	other := filepath.Join(n.Dir, "other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	n.run(initArgs("--bpffs", other)...).exits(0)
	n.run("uninstall", "--force").exits(bootstrap.ExitInternal).says("belongs to an instance with --bpffs " + other)
	n.checkServes()
	if err := unix.Mount("tmpfs", other, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	n.run("uninstall", "--force", "--bpffs", other).exits(bootstrap.ExitInternal).says("can't be reached")
	n.checkServes()
	if err := unix.Unmount(other, 0); err != nil {
		t.Fatal(err)
	}
	n.run("uninstall", "--force", "--bpffs", other).exits(0)
}

func TestInitIsInterruptedByASignal(t *testing.T) {
	n := newNode(t)
	before := n.state()
	cmd := n.command(t.Context(), nil, "init", "--persist", "off", "--timeout", "30s", "--service-ips", vip4, "--endpoints", server4)
	started := make(chan *os.Process, 1)
	done := make(chan result, 1)
	go func() {
		done <- finish(t, cmd, func() error {
			err := n.start(cmd)
			started <- cmd.Process
			return err
		})
	}()
	process := <-started
	lab.Await(t, "the programs", func() bool { return len(n.attached()) > 0 })
	if err := process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	(<-done).exits(bootstrap.ExitInternal).says("interrupted")
	lab.Await(t, "programs to detach", func() bool { return len(n.attached()) == 0 })
	n.run("uninstall", "--force").exits(0)
	n.stateUnchanged(before)
}

// On a node that served both families, half a proof is none: the former state did more.
func TestInitHalfProvenChangesNothingThatServed(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.init()
	n.echo("tcp", "no API server", "[::1]:7443") // accepts connections, so that its probe is good
	n.run("init", "--persist", "off", "--timeout", "700ms", "--prove", "ready", "--service-ips", vips, "--endpoints", server4+",[::1]:7443").
		exits(bootstrap.ExitProof).says("taken back")
	n.run("nat").exits(0).says(server6)
	n.checkServes()
}
