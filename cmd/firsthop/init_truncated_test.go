package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsthop/firsthop/natinit/instance"
)

// TestInitRecoversTruncatedStateFiles cuts every state file off, as a full disk or a loss of power does: no command
// panics, init repairs, and uninstall undoes all that was done. The journal at every length is a test of package instance.
func TestInitRecoversTruncatedStateFiles(t *testing.T) {
	n := newNode(t)
	n.serving()
	n.StateDir, n.RunDir = filepath.Join(n.Dir, "made/by/init/state"), filepath.Join(n.Dir, "made/by/init/run")
	before := n.traces()
	args := initArgs()
	args[len(args)-1] = "auto" // --persist
	for _, path := range []string{
		filepath.Join(n.RunDir, instance.JournalName), filepath.Join(n.StateDir, instance.JournalName),
		filepath.Join(n.RunDir, instance.BackupName), filepath.Join(n.StateDir, instance.BackupName),
		filepath.Join(n.RunDir, instance.StatusName), filepath.Join(n.RunDir, instance.LockName), filepath.Join(n.StateDir, "apiserver.json"),
	} {
		for part := range 4 {
			t.Run(fmt.Sprintf("%s %d of 4", strings.TrimPrefix(path, n.Dir+"/"), part), func(t *testing.T) {
				n.T = t
				cut := func() {
					text, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(path, text[:len(text)*part/4], 0o600); err != nil {
						t.Fatal(err)
					}
				}
				n.run(args...).exits(0)
				cut()
				for _, command := range []string{"status", "doctor", "nat", "discover"} {
					if r := n.run(command); strings.Contains(r.stderr, "panic") || strings.Contains(r.stderr, "goroutine") {
						t.Errorf("%s: %s", command, r.stderr)
					}
				}
				n.run(args...).exits(0)
				n.checkServes()
				cut()
				n.run("uninstall", "--force").exits(0)
				if diff := cmp.Diff(before, n.traces()); diff != "" {
					t.Errorf("left or lost (- before, + after):\n%s", diff)
				}
			})
		}
	}
}
