package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
)

// Option is a flag of a command, as its help has it.
type Option struct {
	Names    string // "--output FORMAT, -o FORMAT"
	Usage    string
	Category string // "" for those that are the command's own
}

// Name is what an option is known by: --output.
func (o Option) Name() string { return regexp.MustCompile(`--[a-z][a-z0-9-]*`).FindString(o.Names) }

// Command is a command of the program, or the program itself.
type Command struct {
	Name        string
	Arguments   string // that are no options
	Usage       string
	Description []string // paragraphs
	Commands    []string // the names of its own
	Options     []Option
}

// readHelp asks the program about itself and all of its commands.
func readHelp(ctx context.Context, program string) (top Command, commands []Command, err error) {
	ask := func(name string, args ...string) (Command, error) {
		out, err := exec.CommandContext(ctx, program, args...).Output()
		if err != nil {
			return Command{}, fmt.Errorf("ask the program for its help (%s): %w", strings.Join(args, " "), err)
		}
		c, err := parseHelp(string(out))
		c.Name = name
		return c, err
	}
	if top, err = ask("firsthop", "help"); err != nil {
		return top, nil, err
	}
	for _, path := range top.Commands {
		c, err := ask(path, path, "--help")
		if err != nil {
			return top, nil, err
		}
		commands = append(commands, c)
		for _, sub := range c.Commands {
			s, err := ask(path+" "+sub, path, sub, "--help")
			if err != nil {
				return top, nil, err
			}
			commands = append(commands, s)
		}
	}
	return top, commands, nil
}

// parseHelp reads what the program prints: headings at the left, and below each what it is about, indented by 3; what is
// indented by more goes on with the line above.
func parseHelp(text string) (Command, error) {
	var c Command
	var heading, category string
	var paragraph []string
	endParagraph := func() {
		if len(paragraph) > 0 {
			c.Description = append(c.Description, strings.Join(paragraph, "\n"))
			paragraph = nil
		}
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \n")
		if line != "" && line[0] != ' ' && strings.HasSuffix(line, ":") {
			heading, category = strings.TrimSuffix(line, ":"), ""
			continue
		}
		indent := len(line) - len(strings.TrimLeft(line, " "))
		line = strings.TrimSpace(line)
		first, rest, _ := strings.Cut(line, "  ")
		switch {
		case heading == "DESCRIPTION" && line == "":
			endParagraph()
		case heading == "DESCRIPTION":
			paragraph = append(paragraph, line)
		case line == "":
		case heading == "NAME" && indent > 3 && c.Usage != "":
			c.Usage += " " + line
		case heading == "NAME":
			_, c.Usage, _ = strings.Cut(line, " - ")
		case heading == "USAGE":
			_, c.Arguments, _ = strings.Cut(line, "options]")
			c.Arguments = strings.TrimSpace(c.Arguments)
		case heading == "COMMANDS" && indent > 3: // the text above goes on
		case heading == "COMMANDS":
			if name, _, _ := strings.Cut(first, ","); name != "help" {
				c.Commands = append(c.Commands, name)
			}
		case heading == "OPTIONS" && indent > 3 && len(c.Options) > 0:
			o := &c.Options[len(c.Options)-1]
			o.Usage = strings.TrimSpace(o.Usage + " " + line)
		case heading == "OPTIONS" && strings.HasPrefix(line, "-"):
			names, _, _ := strings.Cut(first, " [ ") // it can be given several times
			if strings.HasPrefix(names, "--help") {
				continue
			}
			c.Options = append(c.Options, Option{Names: names, Usage: strings.TrimSpace(rest), Category: category})
		case heading == "OPTIONS" && strings.HasSuffix(line, ":"):
			category = strings.TrimSuffix(line, ":")
		case heading == "OPTIONS":
			return c, fmt.Errorf("understand the help's line %q", line)
		}
	}
	endParagraph()
	for i, o := range c.Options {
		c.Options[i].Usage = usage(o.Usage)
	}
	if c.Usage == "" {
		return c, fmt.Errorf("understand the help %q: it has no name", text)
	}
	return c, nil
}

// usage leaves out a default of the flag package where the text names another, or that goes without saying.
func usage(text string) string {
	if strings.Count(text, "(default: ") > 1 {
		text = strings.Replace(text, " (default: 0)", "", 1)
	}
	return strings.Replace(text, " (default: false)", "", 1)
}
