package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
	"github.com/firsthop/firsthop/natinit/proof"
)

func initCommand(e env) *cli.Command {
	return &cli.Command{
		Name:      "init",
		Usage:     "make a connection to the API server's Service IP work, and prove it",
		ArgsUsage: " ",
		Description: `Checks the kernel, ensures a bpffs and the cgroup2 root, finds the API
servers, seeds the NAT table, attaches the connect-time load balancer, connects
to the Service IP for real, and prepares the next boot. A second run changes
nothing. Until the connection is proven, a run that fails leaves programs and
table as they were; mounts and directories that it made stay.`,
		Flags: join([]cli.Flag{
			stringFlag("prove", string(proof.Auto), "`STRENGTH` of the proof: translated, answered (TCP), verified (TLS, by the node's CA), ready (/readyz), or auto: verified if a CA is known, else answered", ""),
			stringFlag("persist", string(bootstrap.PersistAuto), "what to install for the next boot: auto or off", ""),
			boolFlag("best-effort", false, "report failures, but exit 0 (64 for a bad setting remains)"),
			boolFlag("dry-run", false, "say what would change, and change nothing"),
			&cli.BoolFlag{Name: "boot", Usage: "as run by the boot unit: a translated connection is proof enough, as the API server may start later"},
			lockFlag(),
		}, balancerFlags(), kernelFlags(), addressFlags(), []cli.Flag{kubeadmFlag()}, commonFlags(), []cli.Flag{outputFlag()}),
		Action: staged(e, runInit),
	}
}

// bootLockTimeout ends before systemd ends the boot unit (TimeoutStartSec=30s),
// so that the reason is told.
const bootLockTimeout = 10 * time.Second

func runInit(c *call) error {
	cfg := c.config()
	cfg.Prove, cfg.Persist, cfg.Boot = c.String("prove"), c.String("persist"), c.Bool("boot")
	if cfg.Boot && !c.IsSet("prove") {
		cfg.Prove = string(proof.Translated)
	}
	if cfg.Boot && !c.IsSet("lock-timeout") {
		cfg.LockTimeout = bootLockTimeout
	}
	report := bootstrap.Init(c.Context.Context, cfg)
	err := printReport(c, report, c.Bool("best-effort"))
	if failed := c.env.stdout.err(); failed != nil && report.ExitCode == bootstrap.ExitOK {
		// The node is served: to start an init container again and again would help nobody.
		fmt.Fprintln(c.env.stderr, "firsthop: the report could not be written:", failed)
		c.env.stdout.failed, err = nil, nil
	}
	return err
}

func printReport(c *call, r *bootstrap.Report, bestEffort bool) error {
	code := r.ExitCode
	if bestEffort && code != bootstrap.ExitUsage {
		code = bootstrap.ExitOK
	}
	return c.report(r, code, func(p *printer) { reportText(p, r) })
}

func reportText(p *printer, r *bootstrap.Report) {
	p.linef("%s\n", verdict(r))
	for _, st := range r.Steps {
		if st.Result == bootstrap.Skipped && r.Failure() != nil && strings.HasSuffix(st.Reason, " failed") {
			continue // the failed step is the last that matters
		}
		prefix := fmt.Sprintf("%-9s %s %8.1f ms  ", st.Step, p.paint(gradeOf(st), 4), st.Millis)
		p.item(prefix, stepColumn, st.Reason)
		for _, w := range st.Warnings {
			p.say(stepColumn, "warning: %s", w)
		}
		verb := ""
		if r.DryRun {
			verb = "would: "
		}
		for _, ch := range st.Changes {
			p.say(stepColumn, "%s%s", verb, ch)
		}
	}
}

// stepColumn is where the text of a step begins.
const stepColumn = 28

// gradeOf is the result of a step in the words of all commands.
func gradeOf(st bootstrap.StepReport) diagnose.Grade {
	switch {
	case st.Result == bootstrap.Failed:
		return diagnose.Fail
	case st.Result == bootstrap.Skipped:
		return diagnose.Skip
	case len(st.Warnings) > 0:
		return diagnose.Warn
	}
	return diagnose.OK
}

func warned(r *bootstrap.Report) bool {
	return slices.ContainsFunc(r.Steps, func(st bootstrap.StepReport) bool { return len(st.Warnings) > 0 })
}

func verdict(r *bootstrap.Report) string {
	switch {
	case r.Failure() != nil:
		return fmt.Sprintf("failed at %s after %.1f ms, exit code %d", r.Failure().Step, r.Millis, r.ExitCode)
	case r.DryRun:
		return "dry run: nothing was changed"
	case r.Result == bootstrap.Skipped:
		return "nothing was attached"
	}
	if warned(r) {
		return fmt.Sprintf("done in %.1f ms, with warnings", r.Millis)
	}
	return fmt.Sprintf("done in %.1f ms", r.Millis)
}
