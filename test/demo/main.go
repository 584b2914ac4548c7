// Command demo shows firsthop at work, on this machine's kernel and without touching the machine: in a network
// namespace, a cgroup and a bpffs of its own, with three stand-ins for API servers. It runs the real binary, says only
// what happened, fails when something else happens than what it is about to say, and leaves nothing behind.
//
//	demo [-firsthop bin/firsthop]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/firsthop/firsthop/test/lab"
	"golang.org/x/sys/unix"
)

func main() {
	// An interrupt ends the story; the way out is the same as ever.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	err := run(ctx, os.Args[1:])
	if ctx.Err() != nil {
		err = errors.Join(errors.New("interrupted"), err)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	// Inside the lab, the demo is its own client program.
	if len(args) > 0 && args[0] == "get" {
		return get(ctx, args[1:])
	}
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	binary := flags.String("firsthop", "bin/firsthop", "the `program` to show")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, for namespaces and BPF: run it with sudo")
	}
	path, err := filepath.Abs(*binary)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("%w: make build makes it", err)
	}
	before, err := lab.Take()
	if err != nil {
		return err
	}
	err = onMachine(path, func(m *machine) error { return tell(ctx, os.Stdout, m) })
	leaks, leakErr := before.Leaks()
	for _, leak := range leaks {
		leakErr = errors.Join(leakErr, fmt.Errorf("left behind: %s", leak))
	}
	if err := errors.Join(err, leakErr); err != nil {
		return err
	}
	fmt.Println("\nThe namespace, the cgroup, the bpffs and the servers are gone. The machine is as it was.")
	return nil
}
