package main

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"
)

// onUsageError words what the flag package says about a command line for
// people: the flag or variable, the value, and what is wanted.
func onUsageError(c *cli.Context, err error, _ bool) error {
	name, flags := "firsthop", c.App.Flags
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != name {
		name += " " + c.Command.Name
		if len(c.Lineage()) > 3 { // of this command, its parent, the program, and cli's own
			name = "firsthop " + c.Lineage()[1].Command.Name + " " + c.Command.Name
		}
		flags = c.Command.Flags
	}
	problem, hint := explain(err.Error(), flags)
	return usagef("%s: %s`%s --help` lists the flags", problem, hint, name)
}

// What the flag package and cli say, in the order of explain's cases.
const (
	unknownFlag = `^flag provided but not defined: -(.*)$`
	noValue     = `^flag needs an argument: -(.*)$`
	badValue    = `^invalid (?:boolean )?value (".*") for (?:flag )?-([a-z-]+): `
	badVariable = `^could not parse (".*") as .* value from environment variable "(.*)" for flag ([a-z-]+): `
)

// explain says what is wrong with a command line, and what was meant where that can be told.
func explain(text string, flags []cli.Flag) (problem, hint string) {
	match := func(pattern string) []string { return regexp.MustCompile(pattern).FindStringSubmatch(text) }
	if m := match(unknownFlag); m != nil {
		name, _, _ := strings.Cut(m[1], "=")
		near := nearest(strings.TrimLeft(name, "-"), flagNames(flags))
		if near != "" {
			near = "--" + near
		}
		dashes := "--"
		if len(name) == 1 {
			dashes = "-"
		}
		return fmt.Sprintf("unknown flag %q", dashes+m[1]), didYouMean(near)
	}
	if m := match(noValue); m != nil {
		return fmt.Sprintf("--%s needs a value", m[1]), ""
	}
	if m := match(badValue); m != nil {
		return fmt.Sprintf("--%s %s: want %s", m[2], m[1], wanted(flags, m[2])), ""
	}
	if m := match(badVariable); m != nil {
		return fmt.Sprintf("%s %s: want %s", m[2], m[1], wanted(flags, m[3])), ""
	}
	return text, ""
}

// wanted says what values a flag takes.
func wanted(flags []cli.Flag, name string) string {
	for _, f := range flags {
		if f.Names()[0] != name {
			continue
		}
		switch f.(type) {
		case *cli.BoolFlag:
			return "true or false"
		case *cli.DurationFlag:
			return "a duration, such as 2s or 500ms"
		case *cli.UintFlag, *cli.IntFlag:
			return "a whole number"
		}
	}
	return "something else"
}
