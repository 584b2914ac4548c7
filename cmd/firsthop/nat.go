package main

import (
	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap"
)

func natCommand(e env) *cli.Command {
	return &cli.Command{
		Name:      "nat",
		Usage:     "the NAT table: Services, frontends, backends, who wrote them, counters",
		ArgsUsage: " ",
		Flags:     join(commonFlags(), []cli.Flag{outputFlag()}),
		Action: func(c *cli.Context) error {
			p, err := newPrinter(e, c)
			if err != nil {
				return err
			}
			d, err := checkedDirs(c)
			if err != nil {
				return err
			}
			table, err := bootstrap.ReadTable(d)
			if err != nil {
				return err
			}
			return p.print(table, func(p *printer) { natText(p, table) })
		},
	}
}
