package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/test/lab"
)

// asOnTheFloor adds to a command line that everything is forbidden which a kernel at the floor lacks.
func asOnTheFloor(line ...string) []string {
	return append(line, "--forbid-feature", strings.Join(kernel.AboveFloor(), ","))
}

// TestUninstallAsOnTheFloor: below 5.8 a list of links ends in EINVAL, which must not end an uninstall half-way, nor the
// clean-up of an init that failed.
func TestUninstallAsOnTheFloor(t *testing.T) {
	dead := []string{"--endpoints", "127.0.0.1:1,[::1]:1", "--timeout", "50ms"}
	for name, lines := range map[string]struct {
		inits [][]string
		fails bool
	}{
		"an init":              {[][]string{initArgs()}, false},
		"two that differ":      {[][]string{initArgs(), initArgs("--udp=false"), initArgs()}, false},
		"one after a newer":    {[][]string{nil, initArgs()}, false},
		"one that failed":      {[][]string{initArgs(dead...)}, true},
		"two, the last failed": {[][]string{initArgs(), initArgs("--endpoints", "127.0.0.1:1,[::1]:1", "--udp=false")}, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, lab.WithoutBPFFS())
			n.serving()
			n.without(n.StateDir, n.RunDir)
			before := n.traces()
			for i, line := range lines.inits {
				if line == nil {
					n.init() // with all that this kernel has
					continue
				}
				r := n.run(asOnTheFloor(line...)...)
				if fails := lines.fails && i == len(lines.inits)-1; !fails && r.code != 0 || fails && r.code == 0 {
					t.Fatalf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
				}
			}
			n.run(asOnTheFloor("uninstall", "--force")...).exits(0)
			if diff := cmp.Diff(before, n.traces()); diff != "" {
				t.Errorf("traces (- before, + after):\n%s", diff)
			}
			n.run(asOnTheFloor("uninstall")...).exits(0).says("nothing of firsthop's is here")
		})
	}
}

// TestUninstallOfAHiddenBPFFSAsOnTheFloor: what is attached is known by the journal alone.
func TestUninstallOfAHiddenBPFFSAsOnTheFloor(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.run(asOnTheFloor(initArgs()...)...).exits(0)
	if err := os.RemoveAll(n.pins().Dir); err != nil {
		t.Fatal(err)
	}
	n.run(asOnTheFloor("uninstall", "--force")...).exits(0)
	states, err := attach.Inspect(n.pins(), nil, n.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range states {
		if s.Attached || len(s.Foreign) > 0 {
			t.Errorf("still attached: %+v", s)
		}
	}
}

// TestUninstallRefusesUnknownFeatures as other commands do.
func TestUninstallRefusesUnknownFeatures(t *testing.T) {
	n := newNode(t)
	n.run("uninstall", "--forbid-feature", "warp").exits(64).says(`"warp"`)
}

// The systems of test/vm try the floor by a drop-in.
func TestUninstallFloorForbidsAllAboveIt(t *testing.T) {
	text, err := os.ReadFile("../../test/vm/boot/testdata/drop-ins/as-5.3.conf")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(text), "FIRSTHOP_FORBID_FEATURE=")
	got, want := strings.Split(strings.TrimSpace(list), ","), kernel.AboveFloor()
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("as-5.3.conf (- above the floor, + forbidden):\n%s", diff)
	}
}
