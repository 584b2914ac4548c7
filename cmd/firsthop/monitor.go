package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/runtime/monitor"
)

func monitorCommand(e env) *cli.Command {
	return &cli.Command{
		Name:      "monitor",
		Usage:     "packets from outside of the cluster, as they happen: new connections, and what is dropped and why",
		ArgsUsage: " ",
		Description: `Writes a line for each new connection, and for each packet that is refused or
dropped, until it is interrupted. Packets of connections that are known are not
shown. It needs the packet path (firsthop run --packet-path) and Linux 5.8. With
-o json, each line is an object.`,
		Flags: join([]cli.Flag{&cli.BoolFlag{Name: "drops", Usage: "only what is refused or dropped", DisableDefaultText: true}}, commonFlags(), []cli.Flag{outputFlag()}),
		Action: action(e, func(c *call) error {
			packet, err := diagnose.OpenPackets(c.dirs, false)
			if err != nil {
				return err
			}
			defer packet.Close()
			drops, asJSON := c.Bool("drops"), c.String("output") == "json"
			lines := json.NewEncoder(e.stdout)
			return monitor.Listen(c.Context.Context, packet, func(event monitor.Event) {
				switch {
				case drops && event.What == bpf.CountFlow:
				case asJSON:
					_ = lines.Encode(event) // a reader that has gone ends the command by a signal
				default:
					fmt.Fprintln(e.stdout, eventText(event))
				}
			})
		}),
	}
}

// eventText is "12:30:59.123  tcp 203.0.113.2:40000 -> 192.0.2.10:80: led to 10.1.0.5:8080".
func eventText(e monitor.Event) string {
	text := fmt.Sprintf("%s  %s %s -> %s: ", e.Time.Local().Format(time.TimeOnly+".000"), e.Proto, e.From, e.To)
	switch {
	case e.What == bpf.CountFlow:
		return text + "led to " + e.Backend.String()
	case e.What == bpf.CountRejected:
		return text + "refused: nothing serves it"
	}
	return text + "dropped: " + e.What.String()
}
