package main

import (
	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap"
)

func checkCommand(e env) *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "is this node ready: kernel, bpffs, cgroup2, other programs, kube-proxy, boot",
		ArgsUsage: " ",
		Flags:     join([]cli.Flag{boolFlag("verbose", false, "list every kernel feature")}, kernelFlags(), []cli.Flag{kubeadmFlag()}, commonFlags(), []cli.Flag{outputFlag()}),
		Action: func(c *cli.Context) error {
			p, err := newPrinter(e, c)
			if err != nil {
				return err
			}
			cfg, err := config(e, c)
			if err != nil {
				return err
			}
			r, err := bootstrap.Check(c.Context, cfg)
			if err != nil {
				return err
			}
			if err := p.print(r, func(p *printer) { checkText(p, r, c.Bool("verbose")) }); err != nil {
				return err
			}
			if !r.Ready {
				return exitCode(r.ExitCode)
			}
			return nil
		},
	}
}

func checkText(p *printer, r *bootstrap.CheckReport, verbose bool) {
	for _, f := range r.Findings {
		p.linef("%-10s %s  %s", f.Check, p.paint(string(f.Grade), 4), f.Sentence)
		for _, d := range f.Details {
			p.linef("%18s%s", "", d)
		}
	}
	if verbose {
		p.linef("\n%s", r.Kernel)
	}
	if r.Ready {
		p.linef("this node is ready: `firsthop init` would work")
	} else {
		p.linef("this node is not ready: `firsthop init` would end with exit code %d", r.ExitCode)
	}
}
