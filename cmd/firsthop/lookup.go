package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/bpf"
)

func lookupCommand(e env) *cli.Command {
	return &cli.Command{
		Name:      "lookup",
		Usage:     "what a connect to an address would do, and why",
		ArgsUsage: "IP:PORT",
		Description: `Reads what the programs would read, and decides as they would: for a process in
the host's network namespace, for the one that --pid gives, or, as the packet
path would, for the client that --from-outside gives. Nothing is sent.
Exits 0 whatever the answer is.`,
		Flags: join([]cli.Flag{
			&cli.StringFlag{Name: "proto", Value: "tcp", Usage: "`PROTOCOL`: tcp, udp or sctp"},
			&cli.BoolFlag{Name: "udp", Usage: "the same as --proto udp"},
			&cli.IntFlag{Name: "pid", Usage: "for the process with this `ID`: its network namespace and cgroup decide"},
			&cli.StringFlag{Name: "from-outside", Usage: "for a client outside the cluster with this `ADDRESS`, whose packets come to this node"},
		}, commonFlags(), []cli.Flag{forbidFlag(), outputFlag()}),
		OnUsageError:    onUsageError,
		HideHelpCommand: true,
		Action: func(c *cli.Context) error {
			if err := errors.Join(inherit(c), checkVariables(e, c.App.Commands)); err != nil {
				return err
			}
			return action(e, runLookup)(c)
		},
	}
}

func runLookup(c *call) (err error) {
	words := c.words
	if len(words) == 0 {
		return usagef("nat lookup wants an address, as 10.96.0.1:443 or [fd00:96::1]:443")
	}
	if len(words) > 1 {
		return usagef("nat lookup wants one address, as 10.96.0.1:443, but was given %q", strings.Join(words, " "))
	}
	req := diagnose.LookupRequest{Proto: bpf.UDP, PID: c.Int("pid"), Forbid: c.forbidden()}
	if req.Dest, err = diagnose.ParseDest(words[0]); err != nil {
		return usagef("nat lookup: %w", err)
	}
	if !c.Bool("udp") {
		if req.Proto, err = bpf.ParseProto(c.String("proto")); err != nil {
			return usagef("--proto: %w", err)
		}
	}
	if req.PID < 0 {
		return usagef("--pid %d: want more than 0", req.PID)
	}
	if req.Outside, err = outsideClient(c.String("from-outside"), req); err != nil {
		return err
	}
	l, err := diagnose.LookUp(c.dirs, c.runtimeView(), req)
	if err != nil {
		return err
	}
	return c.out.print(l, func(p *printer) { lookupText(p, l) })
}

// outsideClient reads the address of a client outside the cluster; empty: there is none.
func outsideClient(s string, req diagnose.LookupRequest) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(strings.Trim(s, "[] "))
	switch addr = addr.Unmap(); {
	case err != nil || addr.Zone() != "":
		return addr, usagef("--from-outside %q: want an IP address, as 203.0.113.7", s)
	case addr.Is4() != req.Dest.Addr().Unmap().Is4():
		return addr, usagef("--from-outside %s: want an address of the family of %s", addr, req.Dest.Addr())
	case req.PID != 0:
		return addr, usagef("--from-outside and --pid: want one of them, as a process is inside the cluster")
	}
	return addr, nil
}

func lookupText(p *printer, l *diagnose.Lookup) {
	line := l.Asked + " would be " + string(l.Result)
	if len(l.Backends) > 0 {
		line += " to " + bootstrap.Join(l.Backends, " or ")
	}
	p.say(0, "%s", line)
	for _, why := range l.Why {
		p.say(2, "%s", why)
	}
	rows := [][]string{{"entry", orDash(l.Entry)}, {"flags", orDash(strings.Join(l.Flags, " "))}}
	if s := l.Service; s != nil {
		rows = append(rows, []string{"service", fmt.Sprintf("%s (index %d, written by %s)", orDash(s.Name), s.Index, s.Owner)})
		if s.Out != "" {
			rows = append(rows, []string{"", "not as it should be: " + s.Out})
		}
	}
	if l.Affinity > 0 {
		rows = append(rows, []string{"affinity", fmt.Sprintf("%d s", l.Affinity)})
	}
	if len(l.Ranges) > 0 {
		rows = append(rows, []string{"source ranges", strings.Join(l.Ranges, " ")})
	}
	if !l.Client.Outside {
		rows = append(rows, []string{"scope", string(l.Scope)})
	}
	rows = append(rows, []string{"client", clientText(l.Client)})
	p.linef("")
	p.table(rows)
}

func clientText(c diagnose.LookupClient) string {
	if c.Outside {
		return fmt.Sprintf("outside the cluster, at %s", c.Addr)
	}
	var parts []string
	if c.PID != 0 {
		parts = append(parts, fmt.Sprintf("process %d", c.PID))
	}
	switch {
	case c.Unknown != "":
		parts = append(parts, "in a network namespace that can't be told: "+c.Unknown)
	case c.Host && c.Netns == 0:
		parts = append(parts, "in the host's network namespace")
	case c.Host:
		parts = append(parts, fmt.Sprintf("in the host's network namespace (cookie %d)", c.Netns))
	case c.HostUnknown:
		parts = append(parts, fmt.Sprintf("in the network namespace with cookie %d; the programs don't know which is the host's", c.Netns))
	default:
		parts = append(parts, fmt.Sprintf("in a network namespace of its own (cookie %d)", c.Netns))
	}
	if c.Addr.IsValid() {
		parts = append(parts, "known by "+c.Addr.String())
	}
	if c.OptedOut {
		parts = append(parts, "opted out")
	}
	return strings.Join(parts, ", ")
}
