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
		Action: staged(e, func(c *call) error {
			return printReport(c, bootstrap.Install(c.Context.Context, c.config()), false)
		}),
	}
}
