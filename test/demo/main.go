// Command demo shows firsthop at work, on this machine's kernel and without touching the machine: in a network
// namespace, a cgroup and a bpffs of its own, with three stand-ins for API servers. It runs the real binary, says only
// what happened, fails when something else happens than what it is about to say, and leaves nothing behind.
//
//	demo [-firsthop bin/firsthop] [-v]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/firsthop/firsthop/test/lab"
	"golang.org/x/sys/unix"
)

func main() {
	// After an interrupt, the demo cleans up as it does at the end.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "get": // inside the lab, the demo is its own client program
			return get(ctx, args[1:])
		case cleanCommand:
			return cleanAfter(args[1])
		}
	}
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	binary := flags.String("firsthop", "bin/firsthop", "the `program` to show")
	verbose := flags.Bool("v", false, "show the whole output of each command")
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
	began := time.Now()
	for _, line := range wrap(fmt.Sprintf("This demo runs %s on this machine's kernel, in a network namespace, a cgroup and a bpffs of its own. "+
		"API servers and pods are stand-ins. It takes about 15 seconds, changes nothing else on this machine, and removes "+
		"everything at the end, also after Ctrl-C.", *binary), width, "") {
		fmt.Println(line)
	}
	if err := inPrivate(func() error { return show(ctx, path, *verbose) }); err != nil {
		return err
	}
	fmt.Printf("\nThe demo took %.0f seconds and has removed everything it made. The machine is as it was.\n",
		time.Since(began).Seconds())
	return nil
}

// inPrivate calls fn while labs are made where only root may write, as firsthop wants its directories, and while a
// cleaner watches over this process.
func inPrivate(fn func() error) error {
	if err := os.Setenv("TMPDIR", "/run"); err != nil { // lab.Create asks os.TempDir
		return err
	}
	stopCleaner, err := startCleaner()
	if err != nil {
		return err
	}
	return errors.Join(fn(), stopCleaner())
}

// show runs the demo, and verifies that it leaves nothing behind.
func show(ctx context.Context, firsthop string, verbose bool) error {
	before, err := lab.Take()
	if err != nil {
		return err
	}
	err = onMachine(firsthop, func(m *machine) error {
		t := &teller{ctx: ctx, out: os.Stdout, machine: m, verbose: verbose}
		if err := t.tell(); ctx.Err() == nil {
			return err
		}
		return fmt.Errorf("interrupted in step %d", t.step) // commands failed since they were killed
	})
	leaks, leakErr := before.Leaks()
	for _, leak := range leaks {
		leakErr = errors.Join(leakErr, fmt.Errorf("left behind: %s", leak))
	}
	return errors.Join(err, leakErr)
}
