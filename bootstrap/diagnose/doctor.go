package diagnose

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/attach"
)

// Health is how a check of the doctor's came out.
type Health string

// The results.
const (
	Healthy Health = "ok"
	Ailing  Health = "warn" // works, but somebody should do something
	Broken  Health = "fail" // an invariant does not hold
	Unseen  Health = "skip" // what it stands on is broken
)

// Diagnosis is one invariant, checked on the live node.
type Diagnosis struct {
	Check    string   `json:"check"`
	Health   Health   `json:"health"`
	Sentence string   `json:"sentence"`
	Evidence []string `json:"evidence,omitempty"`
	Remedy   string   `json:"remedy,omitempty"` // what to do, where something is to be done
}

func ok(format string, args ...any) Diagnosis {
	return Diagnosis{Health: Healthy, Sentence: fmt.Sprintf(format, args...)}
}

func warn(remedy, format string, args ...any) Diagnosis {
	return Diagnosis{Health: Ailing, Sentence: fmt.Sprintf(format, args...), Remedy: remedy}
}

func fail(remedy, format string, args ...any) Diagnosis {
	return Diagnosis{Health: Broken, Sentence: fmt.Sprintf(format, args...), Remedy: remedy}
}

// because adds what a diagnosis was made from.
func (g Diagnosis) because(evidence ...string) Diagnosis {
	g.Evidence = append(g.Evidence, evidence...)
	return g
}

// DoctorReport is the whole of an examination.
type DoctorReport struct {
	Healthy   bool               `json:"healthy"` // nothing is broken
	ExitCode  bootstrap.ExitCode `json:"exit_code"`
	Diagnoses []Diagnosis        `json:"diagnoses"`
}

// DoctorConfig says whom to examine.
type DoctorConfig struct {
	bootstrap.Dirs
	Runtime             RuntimeView
	Pod                 sources.PodEnvironment
	Binary              string // this program, for the child that connects
	Forbid              []string
	IgnoreKernelVersion bool
}

// Doctor checks every invariant of an instance on the live node. It changes
// nothing; the one thing that others may see of it is a connection to the API.
func Doctor(ctx context.Context, cfg DoctorConfig) (*DoctorReport, error) {
	if err := errors.Join(cfg.Dirs.Validate(), kernel.Config{Forbid: cfg.Forbid}.Validate()); err != nil {
		return nil, &bootstrap.UsageError{Err: err}
	}
	d := &doctor{DoctorConfig: cfg, Places: cfg.Dirs.Places()}
	defer d.close()
	if err := d.gather(); err != nil {
		return nil, err
	}
	rep := &DoctorReport{Healthy: true}
	for _, c := range checks {
		g := c.look(d, ctx)
		g.Check = c.name
		if g.Health == Broken {
			rep.Healthy, rep.ExitCode = false, bootstrap.ExitProof
		}
		rep.Diagnoses = append(rep.Diagnoses, g)
	}
	return rep, nil
}

// checks are the invariants, from what the rest stands on to what stands on it.
var checks = []struct {
	name string
	look func(*doctor, context.Context) Diagnosis
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
	DoctorConfig
	bootstrap.Places

	kern     kernel.Report
	kernErr  error
	mount    mounts.BPFFS
	cgroup   mounts.Cgroup2
	maps     *bpf.Maps // nil: there is no table that can be read
	mapsErr  error     // why
	state    *nat.State
	hooks    []attach.State
	hooksErr error
	last     *bootstrap.Report // of init; nil: none is there
	lastErr  error
}

// gather reads what several checks look at. What can't be read is for those to judge
// that need it.
func (d *doctor) gather() (err error) {
	d.kern, d.kernErr = kernel.Check(kernel.Config{Root: d.HostRoot, IgnoreVersion: d.IgnoreKernelVersion, All: true, Forbid: d.Forbid})
	if d.last, d.lastErr = bootstrap.LoadReport(d.RunDir); errors.Is(d.lastErr, os.ErrNotExist) {
		d.lastErr = nil
	}
	if d.mount, err = mounts.FindBPFFS(d.MountConfig(d.BPFFS)); err != nil {
		return err
	}
	if d.cgroup, err = mounts.FindCgroup2(d.MountConfig(d.Cgroup)); err != nil {
		return err
	}
	if d.mapsErr = d.mount.Err(); d.mapsErr == nil {
		d.maps, d.mapsErr = openTable(d.mount)
	}
	if d.maps != nil {
		if d.state, d.mapsErr = readState(d.maps); d.mapsErr != nil {
			d.maps.Close()
			d.maps = nil
		}
	}
	if d.hooksErr = d.cgroup.Err(); d.hooksErr == nil {
		d.hooks, d.hooksErr = attach.Inspect(d.pinsAt(), d.maps, d.cgroup.Path)
	}
	return nil
}

func (d *doctor) close() {
	if d.maps != nil {
		d.maps.Close()
	}
}

func (d *doctor) pinsAt() bpf.Pins { return bpf.PinsBelow(d.mount.Path) }

// off reports whether nothing is to be attached.
func (d *doctor) off() bool { return d.last != nil && d.last.Scope == bootstrap.ScopeOff }

// runInit is the remedy for most.
const runInit = "firsthop init"

// unseen is for what can't be checked as something that it stands on is broken,
// which another check has said.
func unseen(what string, err error) Diagnosis {
	g := warn("repair what is above first", "could not look at %s: %s", what, err)
	g.Health = Unseen
	return g
}

// count is "1 pin" or "2 pins".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
