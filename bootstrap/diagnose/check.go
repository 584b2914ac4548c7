package diagnose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/kernel"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/kubeproxy"
)

// CheckReport says whether a node is ready for the init stage.
type CheckReport struct {
	Ready    bool               `json:"ready"`
	ExitCode bootstrap.ExitCode `json:"exit_code"`
	Findings Findings           `json:"findings"`
	Would    []string           `json:"init_would"` // what init would change with these settings, in its order
	Kernel   kernel.Report      `json:"kernel"`
}

// requirements are what the init stage needs of a node, each with the code that
// it would end with.
var requirements = []struct {
	name string
	exit bootstrap.ExitCode
	look func(*checkup, context.Context) Finding
}{
	{"kernel", bootstrap.ExitKernel, (*checkup).kernel},
	{"bpffs", bootstrap.ExitBPFFS, (*checkup).bpffs},
	{"cgroup2", bootstrap.ExitCgroup, (*checkup).cgroup2},
	{"hooks", bootstrap.ExitAttach, (*checkup).hooks},
	{"kube-proxy", bootstrap.ExitInternal, (*checkup).kubeProxy},
	{"addresses", bootstrap.ExitNotFound, (*checkup).addresses},
	{"boot", bootstrap.ExitInternal, (*checkup).boot},
}

// Check looks at everything that the init stage needs of a node, and says what
// the stage would do, as its dry run does. It changes nothing.
func Check(ctx context.Context, cfg bootstrap.Config) (*CheckReport, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n, err := lookAt(cfg.Dirs)
	if err != nil {
		return nil, err
	}
	defer n.close()
	c := &checkup{cfg: cfg, node: n}
	if c.kern, err = kernel.Check(kernel.Config{Root: c.HostRoot, IgnoreVersion: cfg.IgnoreKernelVersion, All: true, Forbid: cfg.Forbid}); err != nil {
		return nil, err
	}
	cfg.DryRun = true
	c.plan = bootstrap.Init(ctx, cfg)
	rep := &CheckReport{Would: []string{}, Kernel: c.kern}
	for _, st := range c.plan.Steps {
		if st.Step == "seed" && len(st.Changes) > 0 {
			rep.Would = append(rep.Would, "lead "+st.Reason)
		}
		rep.Would = append(rep.Would, st.Changes...)
	}
	for _, r := range requirements {
		rep.Findings.add(r.name, r.exit, r.look(c, ctx))
	}
	if given, err := cfg.KubeadmFile(); err == nil && given != nil {
		rep.Findings.add("kubeadm", bootstrap.ExitUsage, kubeadmFinding(cfg.Kubeadm, given))
	}
	// The step at which init would fail, if nothing above has said so.
	if failed := c.plan.Failure(); failed != nil && rep.Findings.ExitCode() == bootstrap.ExitOK {
		rep.Findings.add(failed.Step, failed.ExitCode, fail("", "%s", failed.Reason))
	}
	rep.ExitCode = rep.Findings.ExitCode()
	rep.Ready = rep.ExitCode == bootstrap.ExitOK
	return rep, nil
}

// checkup is a check at work.
type checkup struct {
	cfg bootstrap.Config
	*node
	kern kernel.Report
	plan *bootstrap.Report // of a dry run of init
}

func (c *checkup) kernel(context.Context) Finding {
	f := ok("%s", c.kern.Sentence).because(c.kern.Host.Release.Text+" "+c.kern.Host.Uname, c.kern.Host.String())
	f.Details = slices.Clone(c.kern.Degradations)
	if err := c.kern.Err(); err != nil {
		f.Grade, f.Details = Fail, append(f.Details, c.kern.Reasons...)
		if !errors.Is(err, kernel.ErrUnsupported) {
			f.ExitCode = bootstrap.ExitInternal
		}
	}
	return f
}

func (c *checkup) bpffs(context.Context) Finding {
	b := c.mount
	return judgeMount(fmt.Sprintf("%s: %s", b.HostPath, b.State), b.Err(), b.Actions, b.Warnings).because(bpffsEvidence(b)...)
}

func (c *checkup) cgroup2(context.Context) Finding {
	g := c.cgroup
	return judgeMount(fmt.Sprintf("%s: %s", g.HostPath, g.State), g.Err(), g.Actions, g.Warnings).because(g.How)
}

// judgeMount judges a mount: one that init would make is good.
func judgeMount(sentence string, err error, actions, warnings []string) Finding {
	f := ok("%s", sentence)
	f.Details = warnings
	switch {
	case errors.Is(err, mounts.ErrAbsent) && len(actions) > 0:
		f.Sentence += "; init would: " + strings.Join(actions, ", ")
	case err != nil:
		f.Grade, f.Sentence = Fail, err.Error()
	}
	if len(warnings) > 0 && f.Grade == OK {
		f.Grade = Warn
	}
	return f
}

// bpffsEvidence is what was seen of a bpffs.
func bpffsEvidence(b mounts.BPFFS) []string {
	if b.Mount.Type == "" {
		return b.Notes
	}
	return append([]string{fmt.Sprintf("%s on %s type %s (%s)", b.Mount.Source, b.Mount.Point, b.Mount.Type, b.Mount.Options)}, b.Notes...)
}

func (c *checkup) hooks(context.Context) Finding {
	if c.cgroup.Err() != nil || c.kern.Err() != nil {
		return Finding{Grade: Skip, Sentence: "not looked at, as kernel or cgroup2 fail"}
	}
	if c.hooksErr != nil {
		return fail("", "%s", c.hooksErr)
	}
	conflicts, err := attach.Conflicts(c.cgroup.Path, c.kern.Features(), c.Proc)
	if err != nil {
		return fail("", "%s", err)
	}
	if len(conflicts) > 0 {
		f := fail("", "a program of somebody else keeps ours out")
		f.Details = bootstrap.Texts(conflicts)
		return f
	}
	others := c.others()
	hook, _ := bootstrap.Rival(c.node.hooks)
	switch {
	case hook != "":
		f := warn("", "another firsthop serves this cgroup, with another bpffs: init here would not be effective")
		f.Details = others
		return f
	case len(others) > 0:
		return ok("%d other programs at the same hooks, which they share", len(others)).because(others...)
	case c.attached() > 0:
		return ok("%d programs of this instance are attached, and no others", c.attached())
	}
	return ok("no other program is at our hooks")
}

func (c *checkup) kubeProxy(ctx context.Context) Finding {
	p, err := kubeproxy.Detect(ctx, kubeproxy.Config{Root: c.HostRoot, Proc: c.Proc})
	if err != nil {
		return fail("", "%s", err)
	}
	return ok("%s", p.Summary())
}

// addresses says where init would lead connections to the API service.
func (c *checkup) addresses(context.Context) Finding {
	at := slices.IndexFunc(c.plan.Steps, func(st bootstrap.StepReport) bool { return st.Step == "discover" })
	if at < 0 || c.plan.Steps[at].Result == bootstrap.Skipped {
		return Finding{Grade: Skip, Sentence: "not looked for, as what comes before fails"}
	}
	st := c.plan.Steps[at]
	f := ok("%s", st.Reason)
	f.Details = st.Warnings
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
		f.Grade, f.ExitCode = Fail, st.ExitCode
		if lines := strings.Split(st.Reason, "\n"); len(lines) > 1 { // what each source said
			f.Sentence, f.Evidence = lines[0], lines[1:len(lines)-1]
			f.Details = append(f.Details, lines[len(lines)-1]+"; `firsthop discover` shows what each source gave")
		}
	case live == 0 && len(c.plan.Servers) > 0:
		f.Grade, f.ExitCode = Fail, bootstrap.ExitProof
		f.Sentence = "no API server answers: " + f.Sentence
	case len(st.Warnings) > 0:
		f.Grade = Warn
	}
	return f
}

// kubeadmFinding says what init would take from the file for kubeadm.
func kubeadmFinding(path string, f *sources.Finding) Finding {
	services := slices.DeleteFunc(slices.Clone(f.Services), f.IsDefault)
	const none = "not known from it"
	out := ok("%s: Service IP %s, API servers %s", path,
		cmp.Or(bootstrap.Join(services, ", "), none), cmp.Or(bootstrap.Join(f.Endpoints, ", "), none))
	out.Details = f.Notes
	if len(services) == 0 || len(f.Endpoints) == 0 {
		out.Grade = Warn
	}
	return out
}

func (c *checkup) boot(ctx context.Context) Finding {
	switch {
	case c.cfg.Own():
		return ok("an instance with directories of its own is not started at boot")
	case c.NoHost != nil:
		return warn("", "%s", c.NoHost)
	}
	rep, err := bootstrap.PlanBoot(ctx, c.cfg, false)
	if err != nil {
		return warn("", "%s", err)
	}
	f := ok("%s", rep.Statement).because(rep.Notes...)
	f.Details = rep.Warnings
	if !rep.Survives || len(rep.Warnings) > 0 {
		f.Grade = Warn
	}
	return f
}
