package main

import (
	"fmt"

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
		Action: func(c *cli.Context) error {
			p, err := newPrinter(e, c)
			if err != nil {
				return err
			}
			d, err := checkedDirs(c)
			if err != nil {
				return err
			}
			r, err := diagnose.Doctor(c.Context, diagnose.DoctorConfig{
				Pod:  pod(e),
				Dirs: d, Runtime: runtimeView(c.Context, d), Binary: e.self,
				Forbid: atCommas(c.StringSlice("forbid-feature")), IgnoreKernelVersion: c.Bool("ignore-kernel-version"),
			})
			if err != nil {
				return err
			}
			if err := p.print(r, func(p *printer) { doctorText(p, r) }); err != nil {
				return err
			}
			if !r.Healthy {
				return exitCode(r.ExitCode)
			}
			return nil
		},
	}
}

func doctorText(p *printer, r *diagnose.DoctorReport) {
	failed, warned := 0, 0
	for _, g := range r.Diagnoses {
		switch g.Health {
		case diagnose.Broken:
			failed++
		case diagnose.Ailing:
			warned++
		}
	}
	p.linef("%s: %d checks: %d failed, %d with a warning\n", p.verdict(failed, warned), len(r.Diagnoses), failed, warned)
	for _, g := range r.Diagnoses {
		p.finding(string(g.Health), g.Check, g.Sentence)
		for _, e := range g.Evidence {
			p.say(findingColumn, "%s", e)
		}
		if g.Remedy != "" {
			p.say(findingColumn, "remedy: %s", g.Remedy)
		}
	}
}

// findingColumn is where the text of a finding begins.
const findingColumn = 18

// finding writes one result of check or doctor.
func (p *printer) finding(result, name, text string) {
	p.item(p.paint(result, 4)+"  "+fmt.Sprintf("%-12s", name), findingColumn, text)
}

// verdict is the worst of several results.
func (p *printer) verdict(failed, warned int) string {
	switch {
	case failed > 0:
		return p.paint("fail", 0)
	case warned > 0:
		return p.paint("warn", 0)
	}
	return p.paint("ok", 0)
}
