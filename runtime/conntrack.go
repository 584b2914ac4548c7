package runtime

import (
	"context"
	"errors"
	"time"

	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/sysctl"
)

// conntrackInterval is how often it is looked whether connection tracking is loaded.
const conntrackInterval = 10 * time.Second

// followConntrack sets connection tracking as kube-proxy does, once it is loaded,
// and again where it was unloaded meanwhile. What others set after that stays.
// docs/decisions/0019 says why.
func (r *run) followConntrack(ctx context.Context) {
	settings := r.cfg.Conntrack.Settings(sysctl.CPUs(r.cfg.HostRoot))
	if len(settings) == 0 {
		return
	}
	at := sysctl.Of(r.cfg.HostRoot)
	tick := time.NewTicker(conntrackInterval)
	defer tick.Stop()
	done := false
	for {
		if loaded := at.ConntrackLoaded(); !loaded || !done {
			done = loaded && r.setConntrack(ctx, at, settings)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// errNotNoted says that nothing was changed, as it could not be undone.
var errNotNoted = errors.New("the journal cannot be written")

// setConntrack applies the settings once; it reports whether it came to that.
func (r *run) setConntrack(ctx context.Context, at sysctl.Settings, settings []sysctl.Setting) bool {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	err := r.cfg.withJournal(ctx, func(j *instance.Journal) error {
		if j == nil {
			return errNotNoted
		}
		for _, s := range settings {
			outcome, former, err := at.Apply(j, s)
			log := r.cfg.Log.With("setting", sysctl.Dotted(s.Name), "value", s.Value, "before", former)
			switch {
			case err != nil:
				log.Warn("setting of the kernel not changed", "err", err)
			case outcome == sysctl.Changed:
				log.Info("changed a setting of the kernel, as kube-proxy does; uninstall restores it")
			case outcome == sysctl.ReadOnly:
				log.Warn("setting of the kernel not changed: it is read-only here")
			case outcome == sysctl.Global:
				log.Info("left a setting of the kernel that only the machine's first network namespace may change")
			case outcome == sysctl.Left:
				log.Info("left a setting of the kernel as somebody has set it")
			}
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		r.cfg.Log.Warn("settings of connection tracking not changed", "err", err)
	}
	return err == nil || errors.Is(err, errNotNoted)
}
