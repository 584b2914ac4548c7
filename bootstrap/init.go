package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
	"github.com/firsthop/firsthop/natinit/apiserver/sources"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/proof"
)

// Init runs the init stage. Everything that there is to say is in the report,
// whose ExitCode the process ends with; Init itself never fails.
//
// With DryRun nothing is changed, not even a lock file: the report says what
// would be.
func Init(ctx context.Context, cfg Config) *Report {
	return runStage(ctx, &stage{Config: cfg}, initSteps(), keepReport)
}

// Install does the init stage's persist step alone: it installs what brings
// the Service address up at the next boot, and touches no traffic. Addresses
// that are known are saved; that none is known yet is no failure, as the boot
// unit looks again.
func Install(ctx context.Context, cfg Config) *Report {
	return runStage(ctx, &stage{Config: cfg, onlyPersist: true}, installSteps(), keepPersistence)
}

func runStage(ctx context.Context, s *stage, steps []step, keep func(runDir string, r *Report) error) *Report {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	start := time.Now()
	go bpf.Preload()
	s.report = &Report{Version: s.Version, Time: start.UTC(), DryRun: s.DryRun, Result: OK}
	s.run(ctx, steps)
	s.finish(start, keep)
	return s.report
}

// stage is a run of the init stage: what it was told, and what its steps found
// for those after them.
type stage struct {
	Config
	settings
	mounts.Places
	report *Report

	image          bool     // an install into the root that we are in, which is not the running machine's
	outside        string   // the root of that machine, if image
	onlyPersist    bool     // what this run is about is the next boot
	retainWarnings []string // one for each Service with kept backends

	lock      *instance.Lock    // of the run directory
	tableLock *instance.Lock    // of the bpffs, for instances that share one by mistake
	volatile  *instance.Journal // undone by a reboot; nil in a dry run
	durable   *instance.Journal // not undone by a reboot; nil in a dry run
	features  bpf.Features
	balancer  bpf.Balancer
	retained  []netip.AddrPort // backends that answer, kept in the place of given ones of which none does
	bpffs     mounts.BPFFS
	cgroup    mounts.Cgroup2
	onNode    func() []sources.Finding // what the node's files say of API servers, read while other steps run
	found     *discover.Result
	direct    *natinit.Direct                 // the way to API servers, past the programs; nil before the bpffs is known
	connector func() (proof.Connector, error) // made while other steps run; nil until the cgroup is known
	seeded    *natinit.Seeded
	attached  *attach.Attached
}

// outcome is what a step that didn't fail says.
type outcome struct {
	result   Result // "" is OK
	reason   string
	changes  []string
	warnings []string
	stop     bool // the stage ends here, with exit code 0
}

// step is one line of the stage. fail is the exit code if it fails.
type step struct {
	name string
	fail ExitCode
	do   func(*stage, context.Context) (outcome, error)
}

// initSteps are the init stage, in order.
func initSteps() []step {
	return []step{
		{"settings", ExitUsage, (*stage).understand},
		{"lock", ExitInternal, (*stage).takeLock},
		{"kernel", ExitKernel, (*stage).checkKernel},
		{"bpffs", ExitBPFFS, (*stage).ensureBPFFS},
		{"cgroup2", ExitCgroup, (*stage).ensureCgroup},
		{"discover", ExitNotFound, (*stage).discover},
		{"seed", ExitAttach, (*stage).seed},
		{"attach", ExitAttach, (*stage).attach},
		{"prove", ExitProof, (*stage).prove},
		{"persist", ExitInternal, (*stage).persist},
	}
}

// installSteps are those of them that prepare the next boot.
func installSteps() []step {
	return []step{
		{"settings", ExitUsage, (*stage).understand},
		{"lock", ExitInternal, (*stage).takeLock},
		{"kernel", ExitKernel, skipInImage((*stage).checkKernel)},
		{"discover", ExitInternal, (*stage).discoverIfKnown},
		{"persist", ExitInternal, (*stage).persist},
	}
}

func (s *stage) run(ctx context.Context, steps []step) {
	over := "" // why the rest isn't done
	for _, st := range steps {
		if over != "" {
			s.report.Steps = append(s.report.Steps, StepReport{Step: st.name, Result: Skipped, Reason: over})
			continue
		}
		start := time.Now()
		out, err := s.do(ctx, st)
		rep := StepReport{Step: st.name, Result: OK, Reason: out.reason, Millis: Millis(time.Since(start)), Changes: out.changes, Warnings: out.warnings}
		switch {
		case err != nil:
			rep.Result, rep.Reason, rep.ExitCode = Failed, err.Error(), codeOf(err, st.fail)
			s.report.Result, s.report.ExitCode = Failed, rep.ExitCode
			over = st.name + " failed"
		case out.result != "":
			rep.Result = out.result
		}
		if err == nil && out.stop {
			s.report.Result = Skipped
			over = "not needed: " + out.reason
		}
		s.Log.Debug("step done", "step", rep.Step, "result", rep.Result, "reason", rep.Reason, "ms", rep.Millis)
		s.report.Steps = append(s.report.Steps, rep)
	}
	if s.report.Result == Failed {
		s.takeBack()
	}
}

// do does one step, unless a signal has ended the run: what it was about to do
// could not be proven any more.
func (s *stage) do(ctx context.Context, st step) (outcome, error) {
	if err := ctx.Err(); err != nil {
		return outcome{}, &ExitError{ExitInternal, fmt.Errorf("interrupted (%w)", err)}
	}
	out, err := st.do(s, ctx)
	if err != nil && ctx.Err() != nil {
		err = &ExitError{ExitInternal, fmt.Errorf("interrupted: %w", err)}
	}
	return out, err
}

// takeBack undoes a seed and an attachment that were not proven. Both do
// nothing once they are committed.
func (s *stage) takeBack() {
	if s.attached != nil {
		s.complain("take back", s.attached.Rollback())
	}
	if s.seeded != nil {
		s.complain("take back", s.seeded.Rollback())
	}
	s.complain("take back", s.dropPending())
}

// finish keeps the report, closes handles and gives the lock back.
func (s *stage) finish(start time.Time, keep func(runDir string, r *Report) error) {
	if s.connector != nil {
		if conn, err := s.connector(); err == nil { // else the proof has said so
			s.complain("prove", conn.Close())
		}
	}
	if s.attached != nil {
		s.complain("close", s.attached.Close())
	}
	if s.seeded != nil {
		s.complain("close", s.seeded.Close())
	}
	s.complain("close", s.direct.Close())
	if s.tableLock != nil {
		s.complain("lock", s.tableLock.Release())
	}
	s.report.Millis = Millis(time.Since(start))
	if s.lock != nil {
		if s.report.ExitCode != ExitUsage {
			s.complain("report", keep(s.RunDir, s.report))
		}
		s.complain("lock", s.lock.Release())
	}
}

// complain keeps an error that changes nothing any more where it is seen.
func (s *stage) complain(what string, err error) {
	if err == nil {
		return
	}
	s.Log.Error(what, "error", err)
	if n := len(s.report.Steps); n > 0 {
		last := &s.report.Steps[n-1]
		last.Warnings = append(last.Warnings, fmt.Sprintf("%s: %s", what, err))
	}
}

func (s *stage) understand(context.Context) (outcome, error) {
	var err error
	if s.settings, err = s.Config.parse(); err != nil {
		return outcome{}, err
	}
	s.Places = s.Dirs.Places()
	s.intoImage()
	if !s.image {
		if err := s.RefuseChroot(""); err != nil {
			return outcome{}, &ExitError{ExitInternal, err}
		}
	}
	s.report.Scope = s.scope
	s.report.Instance = InstanceDirs{StateDir: s.StateDir, RunDir: s.RunDir}
	return outcome{reason: describeSettings(s.settings)}, nil
}

func describeSettings(s settings) string {
	count := func(n int, one, many string) string {
		switch n {
		case 0:
			return "no " + many + " given"
		case 1:
			return "1 " + one
		}
		return fmt.Sprintf("%d %s", n, many)
	}
	return count(len(s.given.Services), "Service address", "Service addresses") + ", " + count(len(s.given.Endpoints), "endpoint", "endpoints")
}

func (s *stage) takeLock(ctx context.Context) (outcome, error) {
	if s.DryRun {
		return outcome{result: Skipped, reason: "dry run: nothing is changed, so nothing is locked"}, nil
	}
	wait, cancel := context.WithTimeout(ctx, s.LockTimeout)
	defer cancel()
	lock, made, err := instance.MakeAndAcquire(wait, s.RunDir)
	if err != nil && s.NoHost != nil && s.Dirs.RunDir == "" && !errors.Is(err, instance.ErrLocked) {
		err = fmt.Errorf("the host can't be reached from here: %w; and this container's own %s is no place for it: %w", s.NoHost, s.RunDir, err)
	}
	if err != nil {
		return outcome{}, err
	}
	s.lock = lock
	cleanup(s.RunDir, s.StateDir)
	out := outcome{reason: "held"}
	if warning := warnOfMemory(""); warning != "" {
		s.Log.Warn(warning) // at once: it may be the last word
		out.warnings = append(out.warnings, warning)
	}
	warn := func(warning string) {
		if warning != "" {
			out.warnings = append(out.warnings, warning)
		}
	}
	var warning string
	if s.volatile, warning, err = instance.RecoverJournal(s.RunDir, false); err != nil {
		return outcome{}, err
	}
	warn(warning)
	for _, dir := range made {
		if err := s.volatile.Record(instance.KindMkdir, s.OnHost(dir), ""); err != nil {
			return outcome{}, err
		}
	}
	for _, warning := range s.TrustWarnings(lock.Trust) {
		warn(warning)
	}
	if s.durable, warning, err = instance.RecoverJournal(s.StateDir, true); err != nil {
		warn(err.Error()) // the last step will fail; what it saves isn't needed until then
		s.durable = instance.NewJournal(s.StateDir, true)
	}
	warn(warning)
	s.durable.SetOuter(s.volatile)
	if s.lock.Waited > 0 {
		out.reason = fmt.Sprintf("held, after waiting %d ms for another firsthop", s.lock.Waited.Milliseconds())
	}
	return out, nil
}
