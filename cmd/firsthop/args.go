package main

import (
	"flag"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

// positionals are a command's arguments. Flags that stand behind them, where
// the flag package has stopped reading, are taken for the flags that they are.
func positionals(c *cli.Context) ([]string, error) {
	var words []string
	rest := c.Args().Slice()
	for len(rest) > 0 {
		if !strings.HasPrefix(rest[0], "-") || rest[0] == "-" {
			words, rest = append(words, rest[0]), rest[1:]
			continue
		}
		set := flag.NewFlagSet(c.Command.Name, flag.ContinueOnError)
		set.SetOutput(io.Discard)
		names := map[string]string{}
		for _, f := range c.Command.Flags {
			if err := f.Apply(set); err != nil {
				return nil, err
			}
			for _, name := range f.Names() {
				names[name] = f.Names()[0]
			}
		}
		if err := set.Parse(rest); err != nil {
			return nil, onUsageError(c, err, false)
		}
		var failed error
		set.Visit(func(f *flag.Flag) {
			values := []string{f.Value.String()}
			if list, ok := f.Value.(*cli.StringSlice); ok {
				values = list.Value()
			}
			for _, v := range values {
				if err := c.Set(names[f.Name], v); err != nil && failed == nil {
					failed = err
				}
			}
		})
		if failed != nil {
			return nil, failed
		}
		rest = set.Args()
	}
	return words, nil
}

// inherit takes the flags that stand before the name of a subcommand, and that
// it has too, for its own.
func inherit(c *cli.Context) error {
	parent := c.Lineage()[1]
	for _, f := range c.Command.Flags {
		name := f.Names()[0]
		if !c.IsSet(name) && parent.IsSet(name) {
			if err := c.Set(name, parent.String(name)); err != nil {
				return err
			}
		}
	}
	return nil
}
