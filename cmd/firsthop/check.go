package main

import (
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap/diagnose"
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
		kernelText(p, r.Kernel.String())
	}
}

// featureLine is a line of a kernel report about one feature: its columns, and the text.
var featureLine = regexp.MustCompile(`^(  \S+ +\S.*? +Linux \S+ +)(\S.*)$`)

// kernelText writes a kernel report, which has one line for each feature.
func kernelText(p *printer, report string) {
	for line := range strings.Lines(report) {
		line = strings.TrimRight(line, " \n")
		if m := featureLine.FindStringSubmatch(line); m != nil {
			p.item(m[1], utf8.RuneCountInString(m[1]), m[2])
			continue
		}
		indent := len(line) - len(strings.TrimLeft(line, " "))
		p.say(indent, "%s", line[indent:])
	}
}
