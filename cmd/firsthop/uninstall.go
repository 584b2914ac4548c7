package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap/uninstall"
)

func uninstallCommand(e env) *cli.Command {
	return &cli.Command{
		Name:      "uninstall",
		Usage:     "undo everything that this instance changed on the host",
		ArgsUsage: " ",
		Description: `Refuses when nothing else serves the Service addresses, unless --force is given.
What isn't ours is never touched.`,
		Flags: join([]cli.Flag{
			boolFlag("dry-run", false, "list what would be removed, and change nothing"),
			boolFlag("force", false, "also when the node is cut off from the Service addresses by it"),
			lockFlag(), forbidFlag(),
		}, commonFlags(), []cli.Flag{outputFlag()}),
		Action: action(e, func(c *call) error {
			dry := c.Bool("dry-run")
			removed, err := uninstall.Run(c.Context.Context, uninstall.Config{
				Dirs: c.dirs, Force: c.Bool("force"), DryRun: dry, LockTimeout: c.Duration("lock-timeout"), Log: c.log,
				Forbid: c.forbidden(),
			})
			if err != nil {
				return err
			}
			return c.out.print(removed, func(p *printer) { removalsText(p, removed, dry) })
		}),
	}
}

func removalsText(p *printer, removed []uninstall.Removal, dry bool) {
	if len(removed) == 0 {
		p.linef("nothing of firsthop's is here")
		return
	}
	verb := "removed"
	if dry {
		verb = "would remove"
	}
	p.linef("%s %d things:\n", verb, len(removed))
	for _, r := range removed {
		prefix := fmt.Sprintf("%s %-9s  ", verb, r.Kind)
		p.item(prefix, len(prefix), r.Target)
	}
}
