package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
	"github.com/firsthop/firsthop/natinit/apiserver/probe"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
)

func discoverCommand(e env) *cli.Command {
	return &cli.Command{
		Name:      "discover",
		Usage:     "where is the API server: every source, what it gave, and which addresses answer",
		ArgsUsage: " ",
		Flags:     join(addressFlags(), []cli.Flag{kubeadmFlag()}, commonFlags(), []cli.Flag{outputFlag()}),
		Action: action(e, func(c *call) error {
			explicit, err := bootstrap.ParseAddresses(c.given("service-ips", apiserver.VarServices), c.given("endpoints", apiserver.VarEndpoints))
			if err != nil {
				return &bootstrap.UsageError{Err: err}
			}
			ctx, cancel := context.WithTimeout(c.Context.Context, c.Duration("timeout"))
			defer cancel()
			at := c.dirs.Places()
			if file := c.String("kubeadm-config"); file != "" {
				f, err := sources.KubeadmFile(at.HostRoot, file)
				if err != nil {
					return usagef("--kubeadm-config %s", err)
				}
				explicit.Kubeadm = &f
			}
			direct := bootstrap.Direct(c.dirs)
			defer direct.Close()
			found, err := discover.Run(ctx, discover.Config{Probe: probe.Config{Dial: direct.DialContext}, Explicit: explicit, Root: at.HostRoot, StateDir: at.StateDir, Pod: pod(c.env), Machine: bootstrap.MachineAt(at), Thorough: true})
			if err != nil && !errors.Is(err, discover.ErrNotFound) {
				return err
			}
			report := discoverReport{Result: found}
			if err != nil {
				report.Error = firstLine(err)
			}
			if perr := c.out.print(report, func(p *printer) { discoverText(p, found, report.Error) }); perr != nil {
				return perr
			}
			if err != nil {
				if !c.out.json {
					fmt.Fprintln(c.env.stderr, "firsthop:", report.Error)
				}
				return exitCode(bootstrap.ExitNotFound)
			}
			return nil
		}),
	}
}

type discoverReport struct {
	*discover.Result
	Error string `json:"error,omitempty"` // why what was found is not enough
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func discoverText(p *printer, r *discover.Result, missing string) {
	live := 0
	for _, ep := range r.Endpoints {
		if ep.State == apiserver.Live {
			live++
		}
	}
	result, text := diagnose.OK, fmt.Sprintf("%d of %d API servers answer; Service IPs: %s", live, len(r.Endpoints), orDash(bootstrap.Join(r.ServiceAddrs(), " ")))
	switch {
	case missing != "":
		result, text = diagnose.Fail, "init would find too little"
	case live < len(r.Endpoints):
		result = diagnose.Warn
	}
	p.verdict(result, "%s", text)
	for _, n := range r.Notes {
		p.say(2, "note: %s", n)
	}
	p.linef("")
	if len(r.Endpoints) > 0 {
		rows := [][]string{{"API SERVER", "STATE", "LATENCY", "FROM", "WHY"}}
		for _, ep := range r.Endpoints {
			var sources []string
			for _, s := range ep.Sources {
				sources = append(sources, string(s))
			}
			rows = append(rows, []string{ep.String(), ep.State.String(), fmt.Sprintf("%.1f ms", float64(ep.Latency.Microseconds())/1000), strings.Join(sources, ", "), orDash(ep.Detail)})
		}
		p.table(rows)
		p.linef("")
	}
	rows := [][]string{{"SOURCE", "USED", "SERVICE IPS", "ENDPOINTS", "REMARKS"}}
	for _, s := range r.Sources {
		used := "no"
		if s.Used {
			used = "yes"
		}
		rows = append(rows, []string{string(s.Source), used, orDash(bootstrap.Join(s.Services, " ")), orDash(bootstrap.Join(s.Endpoints, " ")), strings.Join(s.Notes, "; ")})
	}
	p.table(rows)
}
