package main

import (
	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/units"
)

func unitsCommand(e env) *cli.Command {
	return &cli.Command{
		Name:        "units",
		Usage:       "what starts firsthop at boot, and what `install` would change",
		ArgsUsage:   " ",
		Description: `Takes the settings that install takes, and says what install would do with them.`,
		Flags:       join(balancerFlags(), kernelFlags(), addressFlags(), []cli.Flag{kubeadmFlag()}, commonFlags(), []cli.Flag{outputFlag()}),
		Action: action(e, func(c *call) error {
			rep, err := bootstrap.ReadUnits(c.Context.Context, c.config())
			if err != nil {
				return err
			}
			return c.out.print(rep, func(p *printer) { unitsText(p, rep) })
		}),
	}
}

func unitsText(p *printer, r *units.Report) {
	switch n := len(r.Actions); {
	case n == 0 && r.Survives:
		p.verdict(diagnose.OK, "`firsthop install` would change nothing\n")
	case n == 0:
		p.verdict(diagnose.Warn, "nothing starts firsthop at boot\n")
	default:
		p.verdict(diagnose.Warn, "not installed as `firsthop install` would: it would make %d changes\n", n)
	}
	for _, a := range r.Actions {
		p.linef("  would: %s %s", a.Kind, a.Path)
	}
	if len(r.Actions) > 0 {
		p.linef("\nthen:")
	}
	p.say(0, "%s", r.Statement)
	for _, n := range r.Notes {
		p.say(2, "note: %s", n)
	}
	for _, w := range r.Warnings {
		p.say(2, "warning: %s", w)
	}
}
