package diagnose

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/kubeproxy"
)

// Grade is how a check came out.
type Grade string

// The grades.
const (
	Good Grade = "ok"
	Warn Grade = "warn" // works, but somebody should do something
	Bad  Grade = "fail" // init would fail here
	Skip Grade = "skip" // not looked at
)

// Finding is one thing that was checked.
type Finding struct {
	Check    string             `json:"check"`
	Grade    Grade              `json:"grade"`
	Sentence string             `json:"sentence"`
	Details  []string           `json:"details,omitempty"`
	Evidence []string           `json:"evidence,omitempty"` // what the sentence was made from
	ExitCode bootstrap.ExitCode `json:"exit_code"`          // what init would end with because of this
}

// CheckReport says whether a node is ready for the init stage.
type CheckReport struct {
	Ready    bool               `json:"ready"`
	ExitCode bootstrap.ExitCode `json:"exit_code"`
	Findings []Finding          `json:"findings"`
	Would    []string           `json:"init_would"` // what init would change with these settings, in its order
	Kernel   kernel.Report      `json:"kernel"`
}

// Check looks at everything that the init stage needs of a node, and says what
// the stage would do, as its dry run does. It changes nothing.
func Check(ctx context.Context, cfg bootstrap.Config) (*CheckReport, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &checkup{Config: cfg, Places: cfg.Dirs.Places(), report: &CheckReport{Ready: true, Would: []string{}}}
	cfg.DryRun = true
	c.plan = bootstrap.Init(ctx, cfg)
	for _, st := range c.plan.Steps {
		if st.Step == "seed" && len(st.Changes) > 0 {
			c.report.Would = append(c.report.Would, "lead "+st.Reason)
		}
		c.report.Would = append(c.report.Would, st.Changes...)
	}
	looks := []func(context.Context) (Finding, error){c.kernel, c.bpffs, c.cgroup2, c.hooks, c.kubeProxy, c.addresses, c.boot}
	if given, err := cfg.KubeadmFile(); err == nil && given != nil {
		looks = append(looks, func(context.Context) (Finding, error) { return kubeadmFinding(cfg.Kubeadm, given), nil })
	}
	for _, look := range looks {
		f, err := look(ctx)
		if err != nil {
			return nil, err
		}
		if f.Grade == Bad {
			c.report.Ready = false
			if c.report.ExitCode == bootstrap.ExitOK {
				c.report.ExitCode = f.ExitCode
			}
		} else {
			f.ExitCode = bootstrap.ExitOK
		}
		c.report.Findings = append(c.report.Findings, f)
	}
	c.rest()
	return c.report, nil
}

// rest adds the step at which init would fail, if nothing above has said so.
func (c *checkup) rest() {
	failed := c.plan.Failure()
	if failed == nil || !c.report.Ready {
		return
	}
	c.report.Ready, c.report.ExitCode = false, failed.ExitCode
	c.report.Findings = append(c.report.Findings, Finding{Check: failed.Step, Grade: Bad, Sentence: failed.Reason, ExitCode: failed.ExitCode})
}

// addresses says where init would lead connections to the API service.
func (c *checkup) addresses(context.Context) (Finding, error) {
	f := Finding{Check: "addresses", Grade: Good, ExitCode: bootstrap.ExitNotFound}
	at := slices.IndexFunc(c.plan.Steps, func(st bootstrap.StepReport) bool { return st.Step == "discover" })
	if at < 0 || c.plan.Steps[at].Result == bootstrap.Skipped {
		f.Grade, f.Sentence = Skip, "not looked for, as what comes before fails"
		return f, nil
	}
	st := c.plan.Steps[at]
	f.Sentence, f.Details = st.Reason, st.Warnings
	live := 0
	for _, s := range c.plan.Servers {
		if s.State == apiserver.Live.String() {
			live++
		}
		where := fmt.Sprintf("%s is %s, from %s", s.Endpoint, s.State, strings.Join(s.Sources, ", "))
		f.Evidence = append(f.Evidence, where)
	}
	switch {
	case st.Result == bootstrap.Failed:
		f.Grade, f.ExitCode = Bad, st.ExitCode
		if lines := strings.Split(st.Reason, "\n"); len(lines) > 1 { // what each source said
			f.Sentence, f.Evidence = lines[0], lines[1:len(lines)-1]
			f.Details = append(f.Details, lines[len(lines)-1]+"; `firsthop discover` shows what each source gave")
		}
	case live == 0 && len(c.plan.Servers) > 0:
		f.Grade, f.ExitCode = Bad, bootstrap.ExitProof
		f.Sentence = "no API server answers: " + f.Sentence
	case len(st.Warnings) > 0:
		f.Grade = Warn
	}
	return f, nil
}

// kubeadmFinding says what init would take from the file for kubeadm.
func kubeadmFinding(path string, f *sources.Finding) Finding {
	out := Finding{Check: "kubeadm", Grade: Good, Details: f.Notes}
	var services, endpoints []string
	for _, s := range f.Services {
		if !f.IsDefault(s) {
			services = append(services, s.String())
		}
	}
	for _, e := range f.Endpoints {
		endpoints = append(endpoints, e.String())
	}
	out.Sentence = fmt.Sprintf("%s: Service IP %s, API servers %s", path, listed(services), listed(endpoints))
	if len(services) == 0 || len(endpoints) == 0 {
		out.Grade = Warn
	}
	return out
}

func listed(l []string) string {
	if len(l) == 0 {
		return "not known from it"
	}
	return strings.Join(l, ", ")
}

type checkup struct {
	bootstrap.Config
	bootstrap.Places
	report *CheckReport
	plan   *bootstrap.Report // of a dry run of init
	mount  mounts.BPFFS
	root   mounts.Cgroup2
}

func (c *checkup) kernel(context.Context) (Finding, error) {
	rep, err := kernel.Check(kernel.Config{Root: c.HostRoot, IgnoreVersion: c.IgnoreKernelVersion, All: true, Forbid: c.Forbid})
	if err != nil {
		return Finding{}, err
	}
	c.report.Kernel = rep
	f := Finding{Check: "kernel", Grade: Good, Sentence: rep.Sentence, ExitCode: bootstrap.ExitKernel,
		Evidence: []string{rep.Host.Release.Text + " " + rep.Host.Uname, rep.Host.String()}}
	f.Details = append(f.Details, rep.Losses...)
	if err := rep.Err(); err != nil {
		f.Grade = Bad
		f.Details = append(f.Details, rep.Reasons...)
		if !errors.Is(err, kernel.ErrUnsupported) {
			f.ExitCode = bootstrap.ExitInternal
		}
	}
	return f, nil
}

func (c *checkup) bpffs(context.Context) (Finding, error) {
	b, err := mounts.FindBPFFS(c.MountConfig(c.BPFFS))
	if err != nil {
		return Finding{}, err
	}
	c.mount = b
	f := Finding{Check: "bpffs", Grade: Good, ExitCode: bootstrap.ExitBPFFS, Sentence: fmt.Sprintf("%s: %s", b.HostPath, b.State)}
	if m := b.Mount; m.Type != "" {
		f.Evidence = append(f.Evidence, fmt.Sprintf("%s on %s type %s (%s)", m.Source, m.Point, m.Type, m.Options))
	}
	f.Evidence = append(f.Evidence, b.Notes...)
	grade(&f, b.Err(), b.Actions, b.Warnings)
	return f, nil
}

func (c *checkup) cgroup2(context.Context) (Finding, error) {
	g, err := mounts.FindCgroup2(c.MountConfig(c.Cgroup))
	if err != nil {
		return Finding{}, err
	}
	c.root = g
	f := Finding{Check: "cgroup2", Grade: Good, ExitCode: bootstrap.ExitCgroup, Sentence: fmt.Sprintf("%s: %s", g.HostPath, g.State), Evidence: []string{g.How}}
	grade(&f, g.Err(), g.Actions, g.Warnings)
	return f, nil
}

// grade judges a mount: one that init would make is good.
func grade(f *Finding, err error, actions, warnings []string) {
	switch {
	case errors.Is(err, mounts.ErrAbsent) && len(actions) > 0:
		f.Sentence += "; init would: " + strings.Join(actions, ", ")
	case err != nil:
		f.Grade, f.Sentence = Bad, err.Error()
	}
	if len(warnings) > 0 && f.Grade == Good {
		f.Grade = Warn
	}
	f.Details = append(f.Details, warnings...)
}

func (c *checkup) hooks(context.Context) (Finding, error) {
	f := Finding{Check: "hooks", Grade: Good, ExitCode: bootstrap.ExitAttach, Sentence: "no other program is at our hooks"}
	if c.root.Err() != nil || c.report.Kernel.Err() != nil {
		f.Grade, f.Sentence = Skip, "not looked at, as kernel or cgroup2 fail"
		return f, nil
	}
	states, err := c.attached()
	if err != nil {
		return f, err
	}
	ours := 0
	for _, st := range states {
		if st.Attached {
			ours++
		}
		for _, other := range st.Foreign {
			f.Details = append(f.Details, st.Hook+": program "+other)
			if strings.Contains(other, `"fh_connect4"`) {
				f.Grade = Warn
			}
		}
	}
	switch {
	case f.Grade == Warn:
		f.Sentence = "another firsthop serves this cgroup, with another bpffs: init here would not be effective"
	case len(f.Details) > 0:
		f.Sentence = fmt.Sprintf("%d other programs at the same hooks, which they share", len(f.Details))
		f.Details, f.Evidence = nil, f.Details
	case ours > 0:
		f.Sentence = fmt.Sprintf("%d programs of this instance are attached, and no others", ours)
	}
	conflicts, err := attach.Conflicts(c.root.Path, c.report.Kernel.Features(), c.Proc)
	for _, n := range conflicts {
		f.Grade, f.Sentence = Bad, "a program of somebody else keeps ours out"
		f.Details = append(f.Details, n.String())
	}
	return f, err
}

// attached is what the kernel says of the hooks.
func (c *checkup) attached() ([]attach.State, error) {
	if c.mount.Err() != nil {
		return attach.Inspect(bpf.Pins{}, nil, c.root.Path)
	}
	maps, err := openTable(c.mount)
	if err != nil && !errors.Is(err, ErrNoTable) {
		return nil, err
	}
	if maps != nil {
		defer maps.Close()
	}
	return attach.Inspect(bpf.PinsBelow(c.mount.Path), maps, c.root.Path)
}

func (c *checkup) kubeProxy(ctx context.Context) (Finding, error) {
	p, err := kubeproxy.Detect(ctx, kubeproxy.Config{Root: c.HostRoot, Proc: c.Proc})
	if err != nil {
		return Finding{}, err
	}
	return Finding{Check: "kube-proxy", Grade: Good, Sentence: p.Summary()}, nil
}

func (c *checkup) boot(ctx context.Context) (Finding, error) {
	f := Finding{Check: "boot", Grade: Good, ExitCode: bootstrap.ExitInternal}
	if c.Own() {
		f.Sentence = "an instance with directories of its own is not started at boot"
		return f, nil
	}
	if c.NoHost != nil {
		f.Grade, f.Sentence = Warn, c.NoHost.Error()
		return f, nil
	}
	rep, err := bootstrap.PlanBoot(ctx, c.Config, false)
	if err != nil {
		f.Grade, f.Sentence = Warn, err.Error()
		return f, nil
	}
	f.Sentence = rep.Statement
	f.Details, f.Evidence = rep.Warnings, rep.Notes
	if !rep.Survives || len(rep.Warnings) > 0 {
		f.Grade = Warn
	}
	return f, nil
}
