// Command connector is both ends of what the benchmarks measure. It makes system calls without telling Go's scheduler of
// them, so that what is measured is the kernel's work.
//
//	connector serve PORT OLD,… NEW,…   accepts on addresses of its own; on the new ones it sends a byte before it closes
//	connector connect                  carries out the requests on its standard input; see package wire
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/firsthop/firsthop/test/kube/bench/wire"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "connector:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 4 && args[0] == "serve":
		port, err := strconv.ParseUint(args[1], 10, 16)
		if err != nil {
			return err
		}
		return serve(uint16(port), strings.Split(args[2], ","), strings.Split(args[3], ","))
	case len(args) == 1 && args[0] == "connect":
		return obey()
	}
	return fmt.Errorf("want serve or connect, got %q", args)
}

// obey carries out requests, one at a time and on one thread, until the standard input ends.
func obey() error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // there is no garbage while connects are timed; it is collected between requests
	out := bufio.NewWriter(os.Stdout)
	in := json.NewDecoder(os.Stdin)
	tell := func(v any) error {
		if err := json.NewEncoder(out).Encode(v); err != nil {
			return err
		}
		return out.Flush()
	}
	for {
		var req wire.Request
		if err := in.Decode(&req); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		reply, err := carryOut(req, tell)
		if err != nil {
			return err
		}
		if err := tell(reply); err != nil {
			return err
		}
		runtime.GC()
	}
}

func carryOut(req wire.Request, tell func(any) error) (wire.Reply, error) {
	targets := make([]endpoint, 0, len(req.Targets))
	for _, t := range req.Targets {
		addr, err := netip.ParseAddrPort(t)
		if err != nil {
			return wire.Reply{}, err
		}
		targets = append(targets, endpointOf(addr))
	}
	source := endpointOf(netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	if req.Source != "" {
		addr, err := netip.ParseAddr(req.Source)
		if err != nil {
			return wire.Reply{}, err
		}
		source = endpointOf(netip.AddrPortFrom(addr, 0))
	}
	switch req.Do {
	case wire.Burst:
		return burst(source, targets, req.For), nil
	case wire.Await:
		return await(source, targets[0], req, func() error { return tell(wire.Reply{Started: true}) })
	case wire.Sweep:
		return sweep(source, targets), nil
	}
	return wire.Reply{}, fmt.Errorf("unknown request %q", req.Do)
}
