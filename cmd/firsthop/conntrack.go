package main

import (
	"math"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/natinit/sysctl"
)

const categoryConntrack = "Connection tracking of the node's netfilter, by kube-proxy's flags (0: as it is):"

// The names are kube-proxy's.
const (
	flagConntrackPerCore     = "conntrack-max-per-core"
	flagConntrackMin         = "conntrack-min"
	flagConntrackEstablished = "conntrack-tcp-timeout-established"
	flagConntrackCloseWait   = "conntrack-tcp-timeout-close-wait"
	flagConntrackLiberal     = "conntrack-tcp-be-liberal"
	flagConntrackUDP         = "conntrack-udp-timeout"
	flagConntrackUDPStream   = "conntrack-udp-timeout-stream"
)

func conntrackFlags() []cli.Flag {
	number := func(name string, value int, usage string) cli.Flag {
		return &cli.IntFlag{Name: name, Value: value, Usage: usage, Category: categoryConntrack, EnvVars: envVar(name)}
	}
	timeout := func(name string, value time.Duration, usage string) cli.Flag {
		return &cli.DurationFlag{Name: name, Value: value, Usage: usage, Category: categoryConntrack, EnvVars: envVar(name)}
	}
	liberal := boolFlag(flagConntrackLiberal, false, "packets out of the window do not make a connection invalid")
	liberal.Category = categoryConntrack
	return []cli.Flag{
		number(flagConntrackPerCore, sysctl.DefaultConntrackPerCore, "room for `N` connections for each processor, never less than there is; 0 ignores --conntrack-min"),
		number(flagConntrackMin, sysctl.DefaultConntrackMin, "room for `N` connections at least"),
		timeout(flagConntrackEstablished, sysctl.DefaultEstablished, "`TIME` after which an idle TCP connection is forgotten"),
		timeout(flagConntrackCloseWait, sysctl.DefaultCloseWait, "`TIME` after which a TCP connection is forgotten that one side has closed"),
		liberal,
		timeout(flagConntrackUDP, 0, "`TIME` after which UDP without an answer is forgotten"),
		timeout(flagConntrackUDPStream, 0, "`TIME` after which UDP with several answers is forgotten"),
	}
}

func conntrackConfig(c *cli.Context) (out sysctl.Conntrack, err error) {
	for name, to := range map[string]*uint64{flagConntrackPerCore: &out.MaxPerCore, flagConntrackMin: &out.Min} {
		n := c.Int(name)
		if n < 0 || n > math.MaxInt32 {
			return out, usagef("--%s %d: want 0 to %d", name, n, math.MaxInt32)
		}
		*to = uint64(n)
	}
	for name, to := range map[string]*sysctl.Timeout{
		flagConntrackEstablished: &out.TCPEstablished, flagConntrackCloseWait: &out.TCPCloseWait,
		flagConntrackUDP: &out.UDP, flagConntrackUDPStream: &out.UDPStream,
	} {
		d := c.Duration(name)
		if d < 0 || d > 0 && d < time.Second || d > math.MaxInt32*time.Second {
			return out, usagef("--%s %s: want 0, or at least 1s", name, d)
		}
		*to = sysctl.Timeout{Duration: d, Given: c.IsSet(name)}
	}
	out.TCPLiberal = c.Bool(flagConntrackLiberal)
	return out, nil
}
