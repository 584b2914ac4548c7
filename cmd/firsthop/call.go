package main

import (
	"errors"
	"log/slog"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/mounts"
)

// call is a command at work: its flags, and what is made of those that all commands have.
type call struct {
	*cli.Context
	env   env
	out   *printer
	log   *slog.Logger
	words []string // arguments that are no flags
	// dirs are checked, but for the commands whose report has a step for that.
	dirs mounts.Dirs
}

// action is a command's action, which is called with flags that make sense.
func action(e env, do func(*call) error) cli.ActionFunc {
	return staged(e, func(k *call) error {
		if err := errors.Join(k.dirs.Validate(), bootstrap.CheckFeatures(k.forbidden())); err != nil {
			return &bootstrap.UsageError{Err: err}
		}
		return do(k)
	})
}

// staged is action for init and install, whose report has a step for the settings.
func staged(e env, do func(*call) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		k, err := newCall(e, c)
		if err != nil {
			return err
		}
		return do(k)
	}
}

func newCall(e env, c *cli.Context) (*call, error) {
	words, err := positionals(c)
	if err != nil {
		return nil, err
	}
	if err := checkCommonFlags(e, c); err != nil {
		return nil, err
	}
	p, err := newPrinter(e, c)
	if err != nil {
		return nil, err
	}
	log, err := newLogger(e, c)
	return &call{Context: c, env: e, out: p, log: log, dirs: dirs(c), words: words}, err
}

// report writes a result, and has the program end with a code.
func (c *call) report(v any, code bootstrap.ExitCode, text func(*printer)) error {
	if err := c.out.print(v, text); err != nil {
		return err
	}
	if code != bootstrap.ExitOK {
		return exitCode(code)
	}
	return nil
}
