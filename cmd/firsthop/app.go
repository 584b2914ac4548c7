package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

const description = `firsthop makes one thing true before anything else on a node needs it: a
connection to the kubernetes Service IP reaches a live API server.

Nouns read (check, status, doctor, discover, nat, units), verbs change (init, run,
install, uninstall).

Exit codes: 0 done, 1 internal error, missing rights or a refusal, 2 bpffs,
3 cgroup2, 4 seed or attach, 5 kernel not supported and no kube-proxy to fall
back to, 6 proof failed or not serving, 7 no API server address found, 64 bad
flag or environment variable.`

func newApp(e env) *cli.App {
	app := &cli.App{
		Name:                 "firsthop",
		Usage:                "the first hop to the Kubernetes API server, by eBPF and without kube-proxy",
		Description:          description,
		Version:              version,
		Writer:               e.stdout,
		ErrWriter:            e.stderr,
		HideVersion:          true,
		EnableBashCompletion: true,
		Suggest:              true,
		Commands: []*cli.Command{
			initCommand(e),
			checkCommand(e),
			statusCommand(e),
			doctorCommand(e),
			discoverCommand(e),
			runCommand(e),
			natCommand(e),
			unitsCommand(e),
			installCommand(e),
			uninstallCommand(e),
			versionCommand(e),
			completionCommand(e),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usagef("%q is not a command of firsthop: `firsthop help` lists them", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		OnUsageError:   onUsageError,
		ExitErrHandler: func(*cli.Context, error) {}, // run decides

		DisableSliceFlagSeparator: true, // a comma is not the same to each flag
	}
	for _, cmd := range app.Commands {
		cmd.OnUsageError = onUsageError
		cmd.HideHelpCommand = true
		action, takesNone := cmd.Action, cmd.ArgsUsage == " "
		cmd.Action = func(c *cli.Context) error {
			if takesNone && c.Args().Present() {
				return usagef("%s takes no arguments, but was given %q", c.Command.Name, strings.Join(c.Args().Slice(), " "))
			}
			if err := checkCommonFlags(e, c); err != nil {
				return err
			}
			return action(c)
		}
	}
	return app
}
