package uninstall

import (
	"context"
	"fmt"
	"strings"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
)

// StrandedError says that without firsthop this node would not start again.
type StrandedError struct {
	Dependents []diagnose.Dependent `json:"dependents"`
}

func (e *StrandedError) Error() string {
	files := "1 file of this node names"
	if n := len(e.Dependents); n > 1 {
		files = fmt.Sprintf("%d files of this node name", n)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s as its API server a Service IP that firsthop serves: without firsthop the node is NotReady after its next reboot", files)
	for _, d := range e.Dependents {
		fmt.Fprintf(&b, "\n  %s", d.Dependent)
		for _, c := range d.Commands {
			fmt.Fprintf(&b, "\n    %s", c)
		}
	}
	b.WriteString("\nrun these commands first, or use --force")
	return b.String()
}

// strands refuses to take away what this node needs to start again.
func (u *uninstaller) strands(ctx context.Context) error {
	last, _ := bootstrap.LoadReport(u.RunDir) // without it, table and saved addresses tell
	services, servers := diagnose.APIServiceOf(u.vips, last, u.StateDir)
	u.servers = servers
	found := diagnose.FindDependents(ctx, u.Dirs, services, servers)
	if len(found) == 0 {
		return nil
	}
	err := &StrandedError{Dependents: found}
	if !u.Force {
		return &bootstrap.ExitError{Code: bootstrap.ExitStranded, Err: err}
	}
	for _, d := range found {
		u.Log.Warn("this file still names a Service IP that firsthop served", "file", d.Path, "server", d.Server, "fix", strings.Join(d.Commands, "; "))
	}
	return nil
}
