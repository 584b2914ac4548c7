package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
)

func statusCommand(e env) *cli.Command {
	return &cli.Command{
		Name:        "status",
		Usage:       "what is attached and served now, and what was proven when",
		ArgsUsage:   " ",
		Description: `Exits 0 while the API service is served, 6 if it isn't.`,
		Flags:       join(commonFlags(), []cli.Flag{outputFlag()}),
		Action: action(e, func(c *call) error {
			st, err := diagnose.ReadStatus(c.dirs, c.runtimeView())
			if err != nil {
				return err
			}
			code := bootstrap.ExitOK
			if !st.Serving {
				code = bootstrap.ExitProof
			}
			return c.report(st, code, func(p *printer) { statusText(p, st) })
		}),
	}
}

func statusText(p *printer, st *diagnose.Status) {
	p.verdict(st.Grade(), "%s", st.Sentence)
	p.findings(st.Findings, true)
	p.linef("\nbpffs   %s", st.Instance.BPFFS)
	p.linef("cgroup  %s (id %d)", st.Instance.Cgroup, st.Instance.CgroupID)
	p.item("runtime ", 8, st.About)
	for _, s := range st.Settings {
		p.item("setting ", 8, s.String())
	}
	if st.Runtime != nil {
		for _, held := range st.Runtime.Held {
			p.item("port    ", 8, held)
		}
		if path := st.Runtime.PacketPath; path != nil {
			p.item("packets ", 8, path.Sentence)
			listText(p, "no uplinks", path.Left)
		}
		listText(p, "not served as Services ask", st.Runtime.Problems)
	}
	if others := st.Services - len(st.Table); others > 0 {
		p.linef("table   %d Services beside those below: `firsthop nat` lists them", others)
	}
	if len(st.Hooks) > 0 {
		p.linef("")
		rows := [][]string{{"HOOK", "ATTACHED", "PROGRAM", "OTHERS"}}
		for _, h := range st.Hooks {
			attached, program := "no", "-"
			if h.Attached {
				attached, program = string(h.By), fmt.Sprint(h.Program)
			}
			rows = append(rows, []string{h.Hook, attached, program, orDash(strings.Join(h.Foreign, ", "))})
		}
		p.table(rows)
	}
	if len(st.Table) > 0 {
		p.linef("")
		natText(p, st.Table)
	}
	if st.Runtime != nil && len(st.Runtime.Servers) > 0 {
		p.linef("")
		runtimeServersText(p, st.Runtime.Servers)
	}
	if st.Last == nil {
		return
	}
	if len(st.Last.Servers) > 0 && (st.Runtime == nil || len(st.Runtime.Servers) == 0) {
		p.linef("\nAPI servers as init probed them %s:", discover.Ago(time.Since(st.Last.Time)))
		serversText(p, st.Last.Servers)
	}
	if st.Last.AfterReboot != "" {
		p.linef("")
		p.say(0, "after a reboot: %s", st.Last.AfterReboot)
	}
}

// mostListed bounds what of a list is shown; -o json has all.
const mostListed = 12

func listText(p *printer, title string, list []string) {
	if len(list) == 0 {
		return
	}
	p.linef("%s:", title)
	for _, text := range list[:min(len(list), mostListed)] {
		p.linef("  %s", text)
	}
	if more := len(list) - mostListed; more > 0 {
		p.linef("  and %d more: see -o json", more)
	}
}

// runtimeServersText is what the runtime knows, which asks all the time: init's report is older.
func runtimeServersText(p *printer, servers []diagnose.RuntimeServer) {
	rows := [][]string{{"API SERVER", "NOW", "ASKED", "USED", "FROM", "WHY"}}
	for _, s := range servers {
		used, asked := "no", "never"
		if s.Used {
			used = "yes"
		}
		if !s.Asked.IsZero() {
			asked = discover.Ago(time.Since(s.Asked))
		}
		state := s.State
		if state == "live" {
			state = fmt.Sprintf("live (%.2f ms)", s.Millis)
		}
		rows = append(rows, []string{s.Endpoint, state, asked, used, orDash(s.Source), orDash(s.Reason)})
	}
	p.table(rows)
}

func serversText(p *printer, servers []bootstrap.Server) {
	rows := [][]string{{"API SERVER", "WHEN PROBED", "USED", "FROM", "WHY"}}
	for _, s := range servers {
		used := "no"
		if s.Used {
			used = "yes"
		}
		state := s.State
		if state == "live" {
			state = fmt.Sprintf("live (%.2f ms)", s.Millis)
		}
		rows = append(rows, []string{s.Endpoint.String(), state, used, strings.Join(s.Sources, ","), orDash(s.Reason)})
	}
	p.table(rows)
}

// orDash is a cell of a table.
func orDash(s string) string { return cmp.Or(s, "-") }
