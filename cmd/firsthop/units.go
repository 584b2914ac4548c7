package main

import (
	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/units"
)

func unitsCommand(e env) *cli.Command {
	return &cli.Command{
		Name:        "units",
		Usage:       "what starts firsthop at boot, and what `install` would change",
		ArgsUsage:   " ",
		Description: `Takes the settings that install takes, and says what install would do with them.`,
		Flags:       join(balancerFlags(), kernelFlags(), addressFlags(), commonFlags(), []cli.Flag{outputFlag()}),
		Action: func(c *cli.Context) error {
			p, err := newPrinter(e, c)
			if err != nil {
				return err
			}
			cfg, err := config(e, c)
			if err != nil {
				return err
			}
			rep, err := bootstrap.ReadUnits(c.Context, cfg)
			if err != nil {
				return err
			}
			return p.print(rep, func(p *printer) { unitsText(p, rep) })
		},
	}
}

func unitsText(p *printer, r *units.Report) {
	p.linef("%s", r.Statement)
	for _, a := range r.Actions {
		p.linef("  install would: %s %s", a.Kind, a.Path)
	}
	for _, n := range r.Notes {
		p.linef("  note: %s", n)
	}
	for _, w := range r.Warnings {
		p.linef("  warning: %s", w)
	}
}
