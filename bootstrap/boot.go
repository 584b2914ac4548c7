package bootstrap

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"github.com/firsthop/firsthop/mounts/hostfs"
	"github.com/firsthop/firsthop/units"
	"github.com/firsthop/firsthop/units/unitfile"
)

// ReadUnits says what starts firsthop at boot, and what an Install with the same
// settings would change: it is the part of its dry run that is about units. It
// changes nothing.
func ReadUnits(ctx context.Context, cfg Config) (*units.Report, error) {
	return PlanBoot(ctx, cfg, true)
}

// PlanBoot plans what Install or, without onlyPersist, Init does for the next
// boot.
func PlanBoot(ctx context.Context, cfg Config, onlyPersist bool) (*units.Report, error) {
	cfg.DryRun = true
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &stage{Config: cfg, onlyPersist: onlyPersist, report: &Report{}}
	if _, err := s.understand(ctx); err != nil {
		return nil, err
	}
	if s.NoHost != nil {
		return nil, s.NoHost
	}
	p := &persistence{stage: s}
	p.boot(ctx)
	rep := &p.units
	if rep.Actions == nil {
		rep.Actions = []units.Action{}
	}
	if err := errors.Join(p.failed...); err != nil {
		rep.Survives = false
		if rep.Statement != p.statement {
			rep.Warnings = append(rep.Warnings, "`firsthop install` would fail: "+err.Error())
		}
	}
	rep.Statement = p.statement
	return rep, nil
}

// bootUnit is where an install puts the unit; a package has its own elsewhere.
const bootUnit = "/etc/systemd/system/firsthop-init.service"

// InstalledArgs are the arguments that the unit of an install has: the settings
// that were chosen for this node, which are no deviation. nil: there is no such
// unit, or it can't be told.
func InstalledArgs(root string) []string {
	unit, err := hostfs.FS{Root: root}.ReadTrusted(bootUnit)
	if err != nil {
		return nil
	}
	for _, o := range unitfile.Parse(string(unit)) {
		if o.Key != "ExecStart" || strings.ContainsAny(o.Value, "$%") { // systemd would replace something
			continue
		}
		if args := unitfile.Words(o.Value); len(args) > 2 && args[1] == "init" && args[2] == "--boot" {
			return args[1:]
		}
	}
	return nil
}
