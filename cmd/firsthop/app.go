package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap"
)

const description = `firsthop makes one thing true before anything else on a node needs it: a
connection to the kubernetes Service IP reaches a live API server.

Nouns read (check, status, doctor, discover, nat, conntrack, monitor, units), verbs
change (init, run, install, uninstall). cluster is about all nodes at once.

Exit codes: 0 done, 1 internal error, missing rights or a refusal, 2 bpffs,
3 cgroup2, 4 seed or attach, 5 kernel not supported and no kube-proxy to fall
back to, 6 proof failed or not serving, 7 no API server address found,
8 uninstall refused as this node needs firsthop to start, 64 bad flag or
environment variable.`

func newApp(e env) *cli.App {
	wrapHelp()
	app := &cli.App{
		Name:                 "firsthop",
		Usage:                "the first hop to the Kubernetes API server, by eBPF and without kube-proxy",
		Description:          description,
		Version:              version,
		Writer:               e.stdout,
		ErrWriter:            e.stderr,
		HideVersion:          true,
		EnableBashCompletion: true,
		Commands: []*cli.Command{
			initCommand(e),
			checkCommand(e),
			statusCommand(e),
			doctorCommand(e),
			discoverCommand(e),
			runCommand(e),
			natCommand(e),
			conntrackCommand(e),
			monitorCommand(e),
			unitsCommand(e),
			installCommand(e),
			uninstallCommand(e),
			clusterCommand(e),
			versionCommand(e),
			completionCommand(e),
		},
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "print the version", DisableDefaultText: true},
		},
		OnUsageError:   onUsageError,
		ExitErrHandler: func(*cli.Context, error) {}, // run decides

		DisableSliceFlagSeparator: true, // a comma is not the same to each flag
	}
	app.Action = func(c *cli.Context) error {
		switch {
		case c.Args().Present():
			return &bootstrap.UsageError{Err: errors.New(unknownCommand(c.Args().First(), app.Commands))}
		case c.Bool("version"):
			return printVersion(e, c)
		}
		return cli.ShowAppHelp(c)
	}
	for _, cmd := range app.Commands {
		cmd.OnUsageError = onUsageError
		cmd.HideHelpCommand = true
		action, takesNone := cmd.Action, cmd.ArgsUsage == " "
		cmd.Action = func(c *cli.Context) error {
			if takesNone && c.Args().Present() {
				return usagef("%s takes no arguments, but was given %q", c.Command.Name, strings.Join(c.Args().Slice(), " "))
			}
			if err := checkVariables(e, app.Commands); err != nil {
				return err
			}
			return action(c)
		}
	}
	return app
}

// unknownCommand is the error about a word that is no command.
func unknownCommand(word string, commands []*cli.Command) string {
	names := []string{"help"}
	for _, c := range commands {
		names = append(names, c.Name)
	}
	return fmt.Sprintf("%q is not a command of firsthop: %s`firsthop help` lists them", word, didYouMean(nearest(word, names)))
}
