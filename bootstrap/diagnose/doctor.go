package diagnose

import (
	"context"
	"fmt"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
)

// DoctorReport is the whole of an examination.
type DoctorReport struct {
	Healthy  bool               `json:"healthy"` // nothing failed
	ExitCode bootstrap.ExitCode `json:"exit_code"`
	Findings Findings           `json:"findings"`
}

// DoctorConfig says whom to examine.
type DoctorConfig struct {
	mounts.Dirs
	Runtime             RuntimeView
	Pod                 sources.PodEnvironment
	Binary              string // this program, for the child that connects
	Forbid              []string
	IgnoreKernelVersion bool
}

// Doctor checks every invariant of an instance on the live node. It changes
// nothing; the one thing that others may see of it is a connection to the API.
func Doctor(ctx context.Context, cfg DoctorConfig) (*DoctorReport, error) {
	n, err := lookAt(cfg.Dirs)
	if err != nil {
		return nil, err
	}
	defer n.close()
	d := &doctor{cfg: cfg, node: n}
	d.kern, d.kernErr = kernel.Check(kernel.Config{Root: d.HostRoot, IgnoreVersion: d.cfg.IgnoreKernelVersion, All: true, Forbid: d.cfg.Forbid})
	rep := &DoctorReport{}
	for _, c := range checks {
		rep.Findings.add(c.name, bootstrap.ExitProof, c.look(d, ctx))
	}
	rep.ExitCode = rep.Findings.ExitCode()
	rep.Healthy = rep.ExitCode == bootstrap.ExitOK
	return rep, nil
}

// checks are the invariants, what others need first: a new check is a row here.
var checks = []struct {
	name string
	look func(*doctor, context.Context) Finding
}{
	{"kernel", (*doctor).kernel},
	{"bpffs", (*doctor).bpffs},
	{"cgroup", (*doctor).trueRoot},
	{"pins", (*doctor).pins},
	{"layout", (*doctor).layout},
	{"directories", (*doctor).directories},
	{"changes", (*doctor).changes},
	{"hooks", (*doctor).hooksAttached},
	{"others", (*doctor).others},
	{"table", (*doctor).table},
	{"room", (*doctor).room},
	{"sockets", (*doctor).sockets},
	{"backends", (*doctor).backends},
	{"proof", (*doctor).proof},
	{"init", (*doctor).lastInit},
	{"runtime", (*doctor).runtime},
	{"cache", (*doctor).cache},
	{"boot", (*doctor).boot},
	{"dependents", (*doctor).dependents},
	{"kube-proxy", (*doctor).kubeProxy},
}

// doctor is an examination at work: what the checks look at.
type doctor struct {
	cfg DoctorConfig
	*node
	kern    kernel.Report
	kernErr error
}

// off reports whether nothing is to be attached.
func (d *doctor) off() bool { return d.last != nil && d.last.Scope == bootstrap.ScopeOff }

// runInit is the remedy for most.
const runInit = "firsthop init"

// count is "1 pin" or "2 pins".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
