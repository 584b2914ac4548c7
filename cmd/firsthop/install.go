package main

import (
	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap"
)

func installCommand(e env) *cli.Command {
	return &cli.Command{
		Name:      "install",
		Usage:     "start firsthop at every boot, before kubelet; touches no traffic now",
		ArgsUsage: " ",
		Description: `Copies this program to the host, installs and enables the boot unit, and saves
the API server addresses that are known. init does the same at its end, unless
it is told --persist off.`,
		Flags: join([]cli.Flag{
			boolFlag("dry-run", false, "say what would change, and change nothing"),
			lockFlag(),
		}, balancerFlags(), kernelFlags(), addressFlags(), []cli.Flag{kubeadmFlag()}, commonFlags(), []cli.Flag{outputFlag()}),
		Action: func(c *cli.Context) error {
			p, err := newPrinter(e, c)
			if err != nil {
				return err
			}
			cfg, err := config(e, c)
			if err != nil {
				return err
			}
			return printReport(p, bootstrap.Install(c.Context, cfg), false)
		},
	}
}
