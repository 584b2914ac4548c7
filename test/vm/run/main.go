// Command run runs tests in virtual machines. See package test/vm; make test-vm calls it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/firsthop/firsthop/test/vm"
	"github.com/firsthop/firsthop/test/vm/debian"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "test-vm:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	names := flag.String("vm", "", "kernels to run, comma-separated; all by default")
	suites := flag.String("suite", "", "suites to run, comma-separated; all by default")
	boot := flag.String("boot", "", "boot systems instead of running suites on kernels: all or short; with +, as +short, both")
	systems := flag.String("system", "", "with -boot: systems to boot, comma-separated; all by default")
	paths := flag.String("path", "", "with -boot: paths to boot them on, comma-separated")
	image := flag.String("kernel", "", "a kernel image to run instead")
	modules := flag.String("modules", "", "the directory with its modules, if it needs any")
	verbose := flag.Bool("v", false, "print all output")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("%q: only flags are understood", flag.Args())
	}

	kernels, err := vm.Select(*names)
	if err != nil {
		return err
	}
	if *image != "" {
		k, err := vm.GivenKernel(*image, *modules)
		if err != nil {
			return err
		}
		kernels = []vm.Kernel{k}
	}
	mirror, err := debian.MirrorOf("")
	if err != nil {
		return err
	}
	repository, err := os.Getwd()
	if err != nil {
		return err
	}
	r := vm.Runner{
		Repository: repository, Cache: filepath.Join(repository, ".cache/vm"), Mirror: mirror, Out: os.Stdout, Verbose: *verbose,
	}
	start := time.Now()
	var results []vm.Result
	which, both := strings.CutPrefix(*boot, "+")
	selected := *names+*suites+*image != ""
	if which == "" || both {
		results, err = r.Run(ctx, kernels, *suites)
	}
	if err == nil && which != "" && !(both && selected) {
		var booted []vm.Result
		booted, err = runSystems(ctx, r, which, *systems, *paths)
		results = append(results, booted...)
	}
	fmt.Println()
	ok := vm.Report(os.Stdout, results)
	fmt.Printf("%.0f s\n", time.Since(start).Seconds())
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("not all passed")
	}
	return nil
}

// runSystems boots what was selected.
func runSystems(ctx context.Context, r vm.Runner, which, systems, paths string) ([]vm.Result, error) {
	on, err := vm.SelectSystems(systems)
	if err != nil {
		return nil, err
	}
	chosen, err := vm.SelectPaths(paths)
	if err != nil {
		return nil, err
	}
	switch {
	case which == "short" && paths == "":
		chosen = vm.ShortPaths()
	case which != "short" && which != "all":
		return nil, fmt.Errorf("boot %q: want short or all", which)
	}
	return r.RunSystems(ctx, on, chosen)
}
