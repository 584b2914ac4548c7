package main

import (
	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap/diagnose"
)

func doctorCommand(e env) *cli.Command {
	return &cli.Command{
		Name:      "doctor",
		Usage:     "check every invariant on the live node, and say what to do",
		ArgsUsage: " ",
		Description: `Looks at what the dataplane stands on, at pins, programs and table, connects to the
API's Service address for real, and looks at what keeps all of it going. It
changes nothing. Exits 0 unless a check fails, then 6.`,
		Flags: join(kernelFlags(), commonFlags(), []cli.Flag{outputFlag()}),
		Action: action(e, func(c *call) error {
			r, err := diagnose.Doctor(c.Context.Context, diagnose.DoctorConfig{
				Pod:  pod(c.env),
				Dirs: c.dirs, Runtime: c.runtimeView(), Binary: c.env.self,
				Forbid: c.forbidden(), IgnoreKernelVersion: c.Bool("ignore-kernel-version"),
			})
			if err != nil {
				return err
			}
			return c.report(r, r.ExitCode, func(p *printer) { doctorText(p, r) })
		}),
	}
}

func doctorText(p *printer, r *diagnose.DoctorReport) {
	failed, warned := r.Findings.Count(diagnose.Fail), r.Findings.Count(diagnose.Warn)
	p.verdict(r.Findings.Worst(), "%d checks: %d failed, %d with a warning\n", len(r.Findings), failed, warned)
	p.findings(r.Findings, true)
}
