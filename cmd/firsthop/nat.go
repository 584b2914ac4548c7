package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
)

func natCommand(e env) *cli.Command {
	return &cli.Command{
		Name:      "nat",
		Usage:     "the NAT table: Services, frontends, backends, who wrote them, counters",
		ArgsUsage: "[NAME | ADDRESS]",
		Description: `Lists all of the table, or the Services that a word is about: a name
(default/web, default/web:http, web), or the address of a frontend or backend,
with or without a port. The runtime, if it runs, knows the names, and which
Services are not in the table. Frontends for clients outside the cluster are
marked as external; local: these reach the local backends only; limited: source
ranges allow some of these clients.`,
		Flags:       join(commonFlags(), []cli.Flag{outputFlag()}),
		Subcommands: []*cli.Command{lookupCommand(e)},
		Action: action(e, func(c *call) error {
			words := c.words
			if len(words) > 1 {
				hint := ""
				if nearest(words[0], []string{"lookup"}) != "" {
					hint = ": did you mean nat lookup?"
				}
				return usagef("nat takes one name or address, but was given %q%s", strings.Join(words, " "), hint)
			}
			table, err := diagnose.ReadTable(c.dirs, c.runtimeView())
			if err != nil {
				return err
			}
			if len(words) == 1 {
				table = diagnose.Filter(table, words[0])
			}
			return c.out.print(table, func(p *printer) {
				if len(table) == 0 && len(words) == 1 {
					p.linef("nothing in the table is about %s", words[0])
					return
				}
				natText(p, table)
			})
		}),
	}
}

// natText writes a table of the Services that are in the NAT table, and a line
// for each that is not, or not as it should be.
func natText(p *printer, services []diagnose.TableService) {
	rows := [][]string{{"SERVICE", "NAME", "OWNER", "FRONTENDS", "BACKENDS", "CONNECTS", "REFUSED"}}
	var out []string
	for _, s := range services {
		if s.Out != "" {
			out = append(out, fmt.Sprintf("%s: %s", s.Name, s.Out))
		}
		if s.Index == 0 {
			continue
		}
		backends := bootstrap.Join(s.Backends, " ")
		if len(s.Local) > 0 {
			backends += " local: " + bootstrap.Join(s.Local, " ")
		}
		rows = append(rows, []string{
			fmt.Sprint(s.Index), orDash(s.Name), string(s.Owner), strings.Join(frontendTexts(s), " "), orDash(backends),
			fmt.Sprint(s.Counters.Translated), fmt.Sprint(s.Counters.Refused),
		})
	}
	if len(rows) > 1 {
		p.table(rows)
	}
	if len(out) > 0 {
		p.linef("\nnot in the table as they should be:")
		for _, o := range out {
			p.say(2, "%s", o)
		}
	}
}

// frontendTexts are a Service's frontends, with what they are to clients outside the cluster: tcp/203.0.113.1:80[external,local].
func frontendTexts(s diagnose.TableService) []string {
	out := slices.Clone(s.Frontends)
	for i, f := range out {
		if !slices.Contains(s.External, f) {
			continue
		}
		words := []string{"external"}
		if slices.Contains(s.ExternalLocal, f) {
			words = append(words, "local")
		}
		if slices.Contains(s.ExternalLimited, f) {
			words = append(words, "limited")
		}
		out[i] += "[" + strings.Join(words, ",") + "]"
	}
	return out
}
