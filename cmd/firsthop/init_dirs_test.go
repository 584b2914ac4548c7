package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/test/lab"
)

// TestInitThatSharesABPFFSByMistake differ in their run directories, so that their locks are not the same.
func TestInitThatSharesABPFFSByMistake(t *testing.T) {
	for _, tc := range []struct {
		name string
		opts []lab.Option
	}{{"a bpffs that is there", nil}, {"a bpffs to mount", []lab.Option{lab.WithoutBPFFS()}}} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, tc.opts...)
			n.serving()
			n.initBeside(10, func(i int) []string { return []string{"--run-dir", fmt.Sprintf("%s/run-%d", n.Dir, i)} })
			if got := n.mounts(); len(got) != 1 {
				t.Errorf("mounts %q, want one", got)
			}
			n.checkOneOfEach()
			n.checkServes()
		})
	}
}

// TestInitDryRunListsWhatIsExchangedAndDetached, and changes nothing.
func TestInitDryRunListsWhatIsExchangedAndDetached(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.init()
	before := n.snapshot()
	r := n.run(initArgs("--udp=false", "--dry-run", "-o", "json")...).exits(0).report()
	n.unchanged(before)
	announced := map[string]bool{}
	for _, s := range r.Steps {
		if s.Step == "attach" {
			for _, c := range s.Changes {
				announced[c] = true
			}
		}
	}
	for _, h := range n.init().Hooks {
		want := fmt.Sprintf("exchange program %d of %s", h.Program, h.Hook)
		if !strings.HasPrefix(h.Hook, "connect") && !strings.HasPrefix(h.Hook, "getpeername") {
			want = fmt.Sprintf("detach program %d of %s", h.Program, h.Hook)
		}
		if !announced[want] {
			t.Errorf("it doesn't say that it would %s", want)
		}
		delete(announced, want)
	}
	for more := range announced {
		t.Errorf("it says that it would %s", more)
	}
	before = n.snapshot()
	for _, s := range n.run(initArgs("--dry-run", "-o", "json")...).exits(0).report().Steps {
		if len(s.Changes) > 0 {
			t.Errorf("nothing is to be done, but %s would %q", s.Step, s.Changes)
		}
	}
	n.unchanged(before)
	n.init("--udp=false")
	before = n.snapshot()
	n.run(initArgs("--dry-run")...).exits(0).says("would: attach sendmsg4", "would: exchange program")
	n.unchanged(before)
}

// TestInitWarnsOfAStateDirectoryThatCannotBeWritten is a warning of init's: a node that serves until the next reboot is better off
// than one whose init container never succeeds. install, which is about the next boot alone, fails.
func TestInitWarnsOfAStateDirectoryThatCannotBeWritten(t *testing.T) {
	const readOnly = `mount --make-rprivate / && mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"`
	n := newNode(t)
	n.serving()
	run := func(stateDir string, line ...string) result {
		t.Helper()
		inner := n.command(t.Context(), nil, append(line, "--state-dir", stateDir)...)
		cmd := n.Command(t.Context(), "unshare", append([]string{"--mount", "sh", "-c", readOnly, "sh", n.StateDir}, inner.Args...)...).Cmd
		cmd.Env = withEnv(nil)
		return finish(t, cmd, func() error { return n.start(cmd) })
	}
	line := []string{"init", "--service-ips", vips, "--endpoints", servers}
	for _, dir := range []string{n.StateDir, n.StateDir + "/below/it"} {
		why := []string{dir + " can't be written", "read-only", "give one that isn't by --state-dir, or --persist off"}
		run(dir, line...).exits(0).says(append(why, "warning: the API server addresses are not saved")...)
		n.checkServes()
		run(dir, append([]string{"install"}, line[1:]...)...).exits(bootstrap.ExitInternal).says(append(why, "failed at persist")...)
		n.checkServes()
	}
	if entries, err := os.ReadDir(n.StateDir); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
	run(n.StateDir, append(line, "--persist", "off")...).exits(0)
	n.checkServes()
	run(n.Dir, line...).exits(0)
}
