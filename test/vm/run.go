package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firsthop/firsthop/test/vm/debian"
	"github.com/firsthop/firsthop/test/vm/qemu"
	"github.com/firsthop/firsthop/test/vm/wire"
)

// Runner runs suites on kernels, and boots systems.
type Runner struct {
	Repository string
	Cache      string // a directory that is kept: packages, binaries, logs
	Mirror     debian.Mirror
	Out        io.Writer
	Verbose    bool // print all output of tests, not only that of failures
}

const (
	memoryMB = 2048
	// atOnce is how many kernels are run at a time: a machine keeps one processor busy, and a second one sometimes.
	atOnce = 2
	// grace is for a boot, which takes 5 to 10 s on a machine that has nothing else to do, and 60 s on one with ten times
	// as much to do as processors.
	grace = 3 * time.Minute
	// bootSuite is in the table when no test could be run.
	bootSuite = "boot"
)

// ready is a kernel with all that it is run with.
type ready struct {
	Kernel
	emulator   qemu.Emulator
	suites     []Suite
	bin, tools string
}

// Run runs the suites on all kernels, several at a time, and returns one result for each. An error is one of the runner's
// own.
func (r *Runner) Run(ctx context.Context, kernels []Kernel, suiteList string) ([]Result, error) {
	suites, err := selectSuites(suiteList)
	if err != nil {
		return nil, err
	}
	var all []ready
	for _, k := range kernels {
		k, err := r.ready(ctx, k, suites)
		if err != nil {
			return nil, err
		}
		all = append(all, k)
	}
	results := make([][]Result, len(all))
	var out sync.Mutex
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, k := range all {
		g.Go(func() error {
			one := *r
			one.Out = &lines{w: r.Out, before: fmt.Sprintf("%-*s", width(kernels), k.Name), mu: &out}
			fmt.Fprintf(one.Out, "  %s on %s\n", k.release, k.emulator.Name)
			if k.Modules == "" {
				fmt.Fprintf(one.Out, "  without modules (VM_MODULES=DIRECTORY): tests fail if one of these isn't built in: %s\n", strings.Join(modules, " "))
			}
			var err error
			if results[i], err = one.runKernel(ctx, k); err != nil {
				return fmt.Errorf("run the kernel %s: %w", k.Name, err)
			}
			return nil
		})
	}
	err = g.Wait()
	return slices.Concat(results...), err
}

// ready fetches and builds what a kernel is run with.
func (r *Runner) ready(ctx context.Context, k Kernel, suites []Suite) (ready, error) {
	emulator, err := r.emulatorOf(ctx, k.Arch)
	if err != nil {
		return ready{}, fmt.Errorf("get a qemu for %s: %w", k.Arch, err)
	}
	if k, err = r.fetch(ctx, k); err != nil {
		return ready{}, fmt.Errorf("get the kernel %s: %w", k.Name, err)
	}
	if TooOld(k.release) {
		suites = refusal
	}
	tools, err := r.tools(ctx, k.Arch)
	if err != nil {
		return ready{}, err
	}
	bin, err := r.binaries(ctx, k.Arch, suites)
	return ready{k, emulator, suites, bin, tools.Dir}, err
}

func width(kernels []Kernel) (w int) {
	for _, k := range kernels {
		w = max(w, len(k.Name))
	}
	return w
}

// lines puts a name before each line, so that several machines can tell of themselves at once.
type lines struct {
	w      io.Writer
	before string
	mu     *sync.Mutex // for all that write to w
	rest   []byte      // of a line that is not ended
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		if _, err := fmt.Fprintf(l.w, "%s%s\n", l.before, line); err != nil {
			return 0, err
		}
		l.rest = rest
	}
}

// runKernel runs each suite in a machine of its own: what one leaves behind, such as programs of the root cgroup or a
// hierarchy of version 1 that was once in use, must not fail the next. Logs of other suites stay.
func (r *Runner) runKernel(ctx context.Context, k ready) ([]Result, error) {
	logs := filepath.Join(r.Cache, "logs", k.Name)
	var results []Result
	for _, s := range k.suites {
		of, err := r.boot(ctx, k, s, logs)
		results = append(results, of...)
		if err != nil || !started(of) {
			return results, err
		}
	}
	return results, nil
}

// started tells whether a machine came as far as to run tests: if not, the next one would not either.
func started(results []Result) bool { return len(results) > 0 && results[0].Suite != bootSuite }

// consoleOf is the log of the console of a suite's machine.
func consoleOf(logs, suite string) string { return filepath.Join(logs, "console-"+suite+".log") }

// clearLogs makes a kernel's directory of logs, without any of a suite's former run.
func clearLogs(logs, suite string) error {
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return err
	}
	for _, old := range []string{consoleOf(logs, suite), filepath.Join(logs, suite+".log"), filepath.Join(logs, bootSuite+".log")} {
		if err := os.Remove(old); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// boot runs a suite in a machine, until it is done or the machine is. It returns one result.
func (r *Runner) boot(ctx context.Context, k ready, s Suite, logs string) ([]Result, error) {
	if err := clearLogs(logs, s.Name); err != nil {
		return nil, err
	}
	console := consoleOf(logs, s.Name)
	suites := []Suite{s}
	var root qemu.Initramfs
	loaded, err := r.fill(&root, k.bin, k.tools, k.Kernel, suites)
	if err != nil {
		return nil, err
	}
	data, err := manifest(k.emulator.Port, []wire.Job{s.job(k.Kernel)}, loaded)
	if err != nil {
		return nil, err
	}
	root.AddData(wire.ManifestPath, data, 0o644)
	image, err := os.CreateTemp("", "fh-initramfs-")
	if err != nil {
		return nil, err
	}
	image.Close()
	defer os.Remove(image.Name())
	if err := root.WriteFile(image.Name()); err != nil {
		return nil, err
	}
	c := collector{Runner: r, kernel: k.Kernel, suites: suites, logs: logs, console: console, began: time.Now()}
	m := qemu.Machine{Kernel: k.Image, Initramfs: image.Name(), MemoryMB: memoryMB, Console: console, Grace: grace}
	err = k.emulator.Boot(ctx, m, c.bound, c.event)
	var broken *qemu.EmulatorError
	if ctx.Err() != nil || errors.As(err, &broken) {
		return c.results, err
	}
	c.end(err)
	return c.results, c.err
}

// collector makes results of events.
type collector struct {
	*Runner
	kernel  Kernel
	suites  []Suite // to be run; the next one is that of the number of results
	logs    string
	console string // its log
	began   time.Time
	up      bool // the guest said Hello
	output  []string
	results []Result
	err     error // an error of ours
}

// bound is how long a suite may take.
func (c *collector) bound(suite string) time.Duration {
	for _, s := range c.suites {
		if s.Name == suite {
			return time.Duration(s.job(c.kernel).Seconds) * time.Second
		}
	}
	return 0
}

func (c *collector) event(e wire.Event) {
	switch e.Kind {
	case wire.Hello:
		c.up = true
		fmt.Fprintf(c.Out, "  %-10s %-6s %5.1f s\n", bootSuite, "", time.Since(c.began).Seconds())
	case wire.Note:
		fmt.Fprintf(c.Out, "  note: %s\n", e.Text)
	case wire.Start:
		c.output, c.began = nil, time.Now()
	case wire.Line:
		c.output = append(c.output, e.Text)
		if c.Verbose {
			fmt.Fprintln(c.Out, "   |", e.Text)
		}
	case wire.Exit:
		o, err := e.Outcome()
		if err != nil {
			c.err = err
			return
		}
		c.add(judge(o, c.output))
	}
}

// add finishes the suite that runs, or is to run next.
func (c *collector) add(r Result) {
	r.Kernel, r.Suite = c.kernel.Name, bootSuite
	if c.up {
		r.Suite = c.suites[len(c.results)].Name
	}
	r.Took = time.Since(c.began)
	r.Log = filepath.Join(c.logs, r.Suite+".log")
	r.Console = c.console
	if err := os.WriteFile(r.Log, []byte(strings.Join(c.output, "\n")+"\n"), 0o644); err != nil {
		c.err = errors.Join(c.err, err)
	}
	fmt.Fprintln(c.Out, "  "+r.line())
	if r.Verdict != Passed && !c.Verbose {
		for _, line := range excerpt(c.output) {
			fmt.Fprintln(c.Out, "   |", line)
		}
	}
	c.results = append(c.results, r)
	c.output, c.began = nil, time.Now()
}

// end makes a result of a machine that went down with a suite, or before the first.
func (c *collector) end(err error) {
	if len(c.results) == len(c.suites) || err == nil && c.err != nil {
		return
	}
	r := Result{Verdict: Died, Detail: "the machine went off in the middle"}
	if err != nil {
		r.Detail = err.Error()
	}
	switch {
	case errors.Is(err, qemu.ErrHang):
		r.Verdict = Hung
	case errors.Is(err, qemu.ErrPanic):
		r.Verdict = Panicked
	}
	r.Detail += "; see " + c.console
	c.output = append(c.output, tail(c.console, 40)...)
	c.add(r)
}
