package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/conntrack"
)

const categoryFlows = "Which flows (all that is given must match):"

func conntrackCommand(e env) *cli.Command {
	names := []string{"list", "count", "flush"}
	cmd := &cli.Command{
		Name:  "conntrack",
		Usage: "the flows of clients outside the cluster to backends: list, count, flush",
		Description: `What the packet path has translated and still tracks: not connections of pods and of
this node, which are translated when they connect, and not netfilter's table.`,
		Flags:       join(commonFlags(), []cli.Flag{outputFlag()}),
		Subcommands: []*cli.Command{flowListCommand(e), flowCountCommand(e), flowFlushCommand(e)},
	}
	cmd.Action = func(c *cli.Context) error {
		if word := c.Args().First(); word != "" {
			return usagef("%q is not a command of firsthop conntrack: %s`firsthop conntrack --help` lists them", word, didYouMean(nearest(word, names)))
		}
		return cli.ShowSubcommandHelp(c)
	}
	return cmd
}

func flowFlags() []cli.Flag {
	flag := func(name, usage string) cli.Flag {
		return &cli.StringFlag{Name: name, Usage: usage, Category: categoryFlows}
	}
	states := make([]string, 0, 8)
	for _, s := range conntrack.FlowStates() {
		states = append(states, s.String())
	}
	return []cli.Flag{
		flag("client", "from this `CIDR` or address"),
		flag("frontend", "to this `ADDRESS` of a Service, with or without a port"),
		flag("backend", "led to this `ADDRESS`, with or without a port"),
		flag("proto", "`PROTOCOL`: tcp, udp or sctp"),
		&cli.StringSliceFlag{Name: "state", Usage: "in this `STATE`: " + strings.Join(states, ", ") + "; repeatable", Category: categoryFlows},
	}
}

// flowFilter reads which flows are meant.
func (c *call) flowFilter() (f conntrack.Filter, err error) {
	flag := func(name string, parse func(string) error) {
		if value := c.String(name); value != "" && err == nil {
			if wrong := parse(value); wrong != nil {
				err = usagef("--%s %w", name, wrong)
			}
		}
	}
	flag("client", func(s string) (err error) { f.Client, err = conntrack.ParseClient(s); return err })
	flag("frontend", func(s string) (err error) { f.Frontend, err = conntrack.ParseEndpoint(s); return err })
	flag("backend", func(s string) (err error) { f.Backend, err = conntrack.ParseEndpoint(s); return err })
	flag("proto", func(s string) (err error) { f.Proto, err = bpf.ParseProto(s); return err })
	for _, s := range atCommas(c.StringSlice("state")) {
		state, wrong := conntrack.ParseState(s)
		if wrong != nil && err == nil {
			err = usagef("--state %w", wrong)
		}
		f.States = append(f.States, state)
	}
	return f, err
}

// flowSubcommand makes a command about flows, which is called with their table and those that are meant.
func flowSubcommand(e env, cmd *cli.Command, readOnly bool, do func(*call, conntrack.Table, conntrack.Filter) error) *cli.Command {
	cmd.ArgsUsage = " "
	cmd.Flags = join(flowFlags(), cmd.Flags, commonFlags(), []cli.Flag{outputFlag()})
	cmd.OnUsageError = onUsageError
	cmd.HideHelpCommand = true
	cmd.Action = func(c *cli.Context) error {
		if err := errors.Join(inherit(c), checkVariables(e, c.App.Commands)); err != nil {
			return err
		}
		return action(e, func(k *call) error {
			if len(k.words) > 0 {
				return usagef("conntrack %s takes no arguments, but was given %q", cmd.Name, strings.Join(k.words, " "))
			}
			which, err := k.flowFilter()
			if err != nil {
				return err
			}
			if cmd.Name == "flush" && which.Empty() != k.Bool("all") {
				return usagef("conntrack flush wants either --all, or which flows: `firsthop conntrack flush --help` lists the flags")
			}
			maps, err := diagnose.OpenPackets(k.dirs, readOnly)
			if err != nil {
				return err
			}
			defer maps.Close()
			return do(k, conntrack.NewTable(maps.Map(bpf.MapConntrack)), which)
		})(c)
	}
	return cmd
}

// serviceNames are the names that the runtime knows, by index.
func (c *call) serviceNames() map[uint32]string {
	names := map[uint32]string{}
	for _, s := range c.runtimeView().Services {
		if s.Index != 0 {
			names[s.Index] = s.Name
		}
	}
	return names
}

func flowListCommand(e env) *cli.Command {
	return flowSubcommand(e, &cli.Command{
		Name:  "list",
		Usage: "flows by frontend: client, backend, state, time since the last packet",
		Description: `SOURCE is this node's address that packets to a backend elsewhere get (masquerade).
The runtime, if it runs, knows the Services' names.`,
		Flags: []cli.Flag{&cli.IntFlag{Name: "limit", Value: 1000, Usage: "`NUMBER` of flows to show at most; 0: all", Category: categoryFlows}},
	}, true, listFlows)
}

// flowRow is a flow in the output of list.
type flowRow struct {
	Proto      bpf.Proto       `json:"proto"`
	Client     netip.AddrPort  `json:"client"`
	Frontend   netip.AddrPort  `json:"frontend"`
	Backend    netip.AddrPort  `json:"backend"`
	State      conntrack.State `json:"state"`
	Source     netip.AddrPort  `json:"source,omitzero"`
	AgeSeconds int             `json:"age_seconds"` // since the last packet
	Index      uint32          `json:"index,omitempty"`
	Service    string          `json:"service,omitempty"`
}

// flowList is the output of list.
type flowList struct {
	Flows   []flowRow `json:"flows"`
	LeftOut int       `json:"left_out"` // beyond --limit
}

func listFlows(c *call, table conntrack.Table, which conntrack.Filter) error {
	limit := c.Int("limit")
	if limit < 0 {
		return usagef("--limit %d: want 0 or more", limit)
	}
	flows, err := table.List(which)
	if err != nil {
		return err
	}
	out := flowList{Flows: []flowRow{}}
	if limit > 0 && len(flows) > limit {
		out.LeftOut = len(flows) - limit
		flows = flows[:limit]
	}
	names := c.serviceNames()
	for i := range flows {
		f := &flows[i]
		source, err := table.Source(f)
		if err != nil {
			return err
		}
		out.Flows = append(out.Flows, flowRow{f.Proto, f.Client, f.Frontend, f.Backend, f.State, source, int(f.Age / time.Second), f.Index, names[f.Index]})
	}
	return c.out.print(out, func(p *printer) { flowListText(p, &out) })
}

// flowListText writes the flows of each frontend below it. A very long list comes in pieces, so that it need not be
// aligned as a whole.
func flowListText(p *printer, out *flowList) {
	const piece = 1000
	if out.LeftOut > 0 {
		p.say(0, "%d flows; the first %d are below: --limit 0 shows all", len(out.Flows)+out.LeftOut, len(out.Flows))
	} else {
		p.linef("%s", flowsText(len(out.Flows)))
	}
	for rest := out.Flows; len(rest) > 0; {
		n := 1
		for n < len(rest) && n < piece && rest[n].Frontend == rest[0].Frontend && rest[n].Proto == rest[0].Proto {
			n++
		}
		p.linef("\n%s", strings.TrimRight(fmt.Sprintf("%s %s  %s", rest[0].Proto, rest[0].Frontend, rest[0].Service), " "))
		rows := [][]string{{" CLIENT", "BACKEND", "STATE", "AGE", "SOURCE"}}
		for _, f := range rest[:n] {
			source := "-"
			if f.Source.IsValid() {
				source = f.Source.String()
			}
			age := time.Duration(f.AgeSeconds) * time.Second
			rows = append(rows, []string{" " + f.Client.String(), f.Backend.String(), f.State.String(), age.String(), source})
		}
		p.table(rows)
		rest = rest[n:]
	}
}

func flowsText(n int) string {
	if n == 1 {
		return "1 flow"
	}
	return fmt.Sprintf("%d flows", n)
}

func flowCountCommand(e env) *cli.Command {
	return flowSubcommand(e, &cli.Command{
		Name:        "count",
		Usage:       "flows by protocol and state, and how full the map of flows is",
		Description: `A flow takes two entries of the map, four if its backend is on another node.`,
	}, true, countFlows)
}

// flowCount is a line of the output of count.
type flowCount struct {
	Proto bpf.Proto       `json:"proto"`
	State conntrack.State `json:"state"`
	Flows int             `json:"flows"`
}

// flowCounts is the output of count.
type flowCounts struct {
	Flows    int         `json:"flows"`
	Entries  int         `json:"entries"`
	Capacity int         `json:"capacity"`
	Counts   []flowCount `json:"counts"`
}

func countFlows(c *call, table conntrack.Table, which conntrack.Filter) error {
	counts, err := table.Count(which)
	if err != nil {
		return err
	}
	out := flowCounts{Entries: counts.Entries, Capacity: counts.Capacity, Counts: []flowCount{}}
	for _, proto := range []bpf.Proto{bpf.TCP, bpf.UDP, bpf.SCTP} {
		for _, state := range conntrack.FlowStates() {
			if n := counts.Flows[conntrack.Kind{Proto: proto, State: state}]; n > 0 {
				out.Counts = append(out.Counts, flowCount{proto, state, n})
				out.Flows += n
			}
		}
	}
	return c.out.print(out, func(p *printer) {
		p.linef("%s; %d of %d entries of the map are in use (%d%%)", flowsText(out.Flows), out.Entries, out.Capacity, 100*out.Entries/max(1, out.Capacity))
		if len(out.Counts) == 0 {
			return
		}
		rows := [][]string{{"PROTO", "STATE", "FLOWS"}}
		for _, n := range out.Counts {
			rows = append(rows, []string{n.Proto.String(), n.State.String(), fmt.Sprint(n.Flows)})
		}
		p.linef("")
		p.table(rows)
	})
}

func flowFlushCommand(e env) *cli.Command {
	return flowSubcommand(e, &cli.Command{
		Name:  "flush",
		Usage: "forget flows: those that are given, or --all; asks nobody",
		Description: `The next packet of UDP begins a new flow, maybe to another backend. TCP and SCTP
don't recover: packets of a connection that is not tracked are not translated, so
the client gets a reset or no answer, and has to connect again.
Flows in state stack, which another service proxy began, become firsthop's.`,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "all", Usage: "all flows", Category: categoryFlows}},
	}, false, flushFlows)
}

// flowFlush is the output of flush.
type flowFlush struct {
	Flushed int `json:"flushed"`
}

func flushFlows(c *call, table conntrack.Table, which conntrack.Filter) error {
	n, err := table.Flush(which)
	if err != nil {
		return fmt.Errorf("flushed %s, and stopped: %w", flowsText(n), err)
	}
	return c.out.print(flowFlush{n}, func(p *printer) { p.linef("flushed %s", flowsText(n)) })
}
