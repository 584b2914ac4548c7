// Command client connects the way that applications do and says what came of it. See package test/clients, which runs
// it and reads what it prints.
//
//	client [-mapped] [-count=N] tcp|udp-connected|udp-unconnected HOST:PORT LINE
//	client [-workers=N] [-for=TIME] [-do=await-close|echo|reset] hammer HOST:PORT
//	client first HOST:PORT
//	client [-mapped] session-KIND HOST:PORT
//	client calls
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/firsthop/firsthop/test/clients"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	mapped := flags.Bool("mapped", false, "reach an IPv4 address through an IPv6 socket")
	count := flags.Int("count", 1, "how many exchanges")
	workers := flags.Int("workers", 64, "hammer: how many connect at the same time")
	duration := flags.Duration("for", 0, "hammer: how long; 0 is until the standard input ends")
	do := flags.String("do", string(clients.AwaitClose), "hammer: what to do with a connection")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.Arg(0) == "calls" {
		return calls()
	}
	if flags.NArg() < 2 {
		return fmt.Errorf("want a mode and an address, got %q", flags.Args())
	}
	mode, line := flags.Arg(0), flags.Arg(2)
	target, err := netip.ParseAddrPort(flags.Arg(1))
	if err != nil {
		return err
	}
	if *mapped {
		target = netip.AddrPortFrom(netip.AddrFrom16(target.Addr().As16()), target.Port())
	}
	if kind, is := strings.CutPrefix(mode, "session-"); is {
		return session(clients.SessionKind(kind), target)
	}
	switch mode {
	case "hammer":
		return hammer(target, *workers, *duration, clients.OnConnect(*do))
	case "first":
		return first(target)
	case "tcp", "udp-connected", "udp-unconnected":
		return exchanges(clients.Mode(mode), target, line+"\n", *count)
	}
	return fmt.Errorf("unknown mode %q", mode)
}

// exchanges prints one report for each attempt. An attempt that fails is a report, not an error.
func exchanges(mode clients.Mode, target netip.AddrPort, line string, count int) error {
	var s *sock
	defer func() { s.close() }()
	for range count {
		if s == nil || mode != clients.UDPUnconnected {
			s.close()
			var err error
			if s, err = newSock(mode, target, 5*time.Second); err != nil {
				return err
			}
		}
		var e clients.Exchange
		if err := s.exchange(mode, target, line, &e); err != nil {
			e.Error = err.Error()
		}
		if err := json.NewEncoder(os.Stdout).Encode(e); err != nil {
			return err
		}
	}
	return nil
}
