package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/kernel"
)

func checkCommand(e env) *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "is this node ready, and what would init do",
		ArgsUsage: " ",
		Description: `Looks at kernel, bpffs, cgroup2, programs of others, kube-proxy, the API server's
addresses and the next boot, and says what init would do with the same settings.
It changes nothing. Exits 0 if the node is ready, else with init's exit code.`,
		Flags: join([]cli.Flag{boolFlag("verbose", false, "show what each result was made from, and every kernel feature")},
			balancerFlags(), kernelFlags(), addressFlags(), []cli.Flag{kubeadmFlag()}, commonFlags(), []cli.Flag{outputFlag()}),
		Action: action(e, func(c *call) error {
			r, err := diagnose.Check(c.Context.Context, c.config())
			if err != nil {
				return err
			}
			return c.report(r, r.ExitCode, func(p *printer) { checkText(p, r, c.Bool("verbose")) })
		}),
	}
}

func checkText(p *printer, r *diagnose.CheckReport, verbose bool) {
	if r.Ready {
		p.verdict(r.Findings.Worst(), "this node is ready: `firsthop init` would work\n")
	} else {
		p.verdict(diagnose.Fail, "this node is not ready: `firsthop init` would end with exit code %d\n", r.ExitCode)
	}
	p.findings(r.Findings, verbose)
	if len(r.Would) > 0 && r.Ready {
		p.linef("\ninit would:")
		for _, w := range r.Would {
			p.say(2, "%s", w)
		}
	}
	if verbose {
		p.linef("")
		kernelText(p, r.Kernel)
	}
}

// kernelText writes the verdict on the kernel, what led to it, and every feature on a line.
func kernelText(p *printer, r kernel.Report) {
	p.say(0, "%s", r.Sentence)
	for _, reason := range r.Reasons {
		p.say(2, "- %s", reason)
	}
	if r.Advice != "" && !strings.Contains(r.Sentence, r.Advice) {
		p.say(2, "advice: %s", r.Advice)
	}
	p.say(0, "host: %s", r.Host)
	minimum := fmt.Sprintf("minimum: %s (%s)", r.Floor.Minimum, r.Floor.Family)
	if r.Floor.Why != "" {
		minimum += ", because " + r.Floor.Why
	}
	p.say(0, "%s", minimum)
	if r.Memlock != nil {
		p.say(0, "RLIMIT_MEMLOCK: %s", r.Memlock)
	}
	for _, problem := range r.Host.Problems {
		p.say(0, "note: %s", problem)
	}
	var name, answer, since int
	for _, f := range r.Results {
		name, answer, since = max(name, len(f.Name)), max(answer, len(f.Answer.String())), max(since, len(f.Since.String()))
	}
	for _, needed := range []bool{true, false} {
		p.linef("%s:", map[bool]string{true: "needed", false: "optional"}[needed])
		for _, f := range r.Results {
			if f.Needed == needed {
				prefix := fmt.Sprintf("  %-*s  %-*s  Linux %-*s  ", name, f.Name, answer, f.Answer, since, f.Since)
				p.item(prefix, len(prefix), f.Remark())
			}
		}
	}
}
