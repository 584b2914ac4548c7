package runtime

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/firsthop/firsthop/natinit/instance"
)

// runtimeLock says to others that this runtime is at work in its run directory.
type runtimeLock struct {
	mu      sync.Mutex
	path    string
	file    os.FileInfo
	release func()
	fault   error // why it could not be taken again after somebody removed it
}

// lock takes it, and creates the run directory where it is not there.
func (l *runtimeLock) lock(ctx context.Context, cfg *Config) error {
	if err := cfg.withJournal(ctx, func(*instance.Journal) error { return nil }); err != nil {
		return err
	}
	release, err := instance.LockRuntime(cfg.RunDir)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.release != nil {
		l.release()
	}
	l.release, l.path = release, filepath.Join(cfg.RunDir, instance.RuntimeLockName)
	l.file, err = os.Lstat(l.path)
	return err
}

func (l *runtimeLock) unlock() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.release != nil {
		l.release()
		l.release = nil
	}
}

// gone reports whether somebody removed the lock, or put another in its place.
func (l *runtimeLock) gone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, err := os.Lstat(l.path)
	return l.release != nil && (err != nil || !os.SameFile(now, l.file))
}

func (l *runtimeLock) setFault(err error) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed = (err == nil) != (l.fault == nil)
	l.fault = err
	return changed
}

func (l *runtimeLock) lost() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault
}

// runDirInterval is how often it is looked whether the run directory is there.
const runDirInterval = time.Second

// lockWait bounds how long the runtime waits for an init stage that is at work.
const lockWait = 30 * time.Second

// keepRunDir makes the run directory again, with the lock by which others see
// this runtime, where somebody removed it.
func (r *run) keepRunDir(ctx context.Context) {
	tick := time.NewTicker(runDirInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !r.instance.gone() {
			continue
		}
		within, cancel := context.WithTimeout(ctx, lockWait)
		err := r.instance.lock(within, r.cfg)
		cancel()
		if ctx.Err() != nil {
			return
		}
		changed := r.instance.setFault(err)
		switch {
		case err == nil:
			r.cfg.Log.Warn("the runtime's lock was removed, and is there again", "run_dir", r.cfg.RunDir)
			if err := r.data.NoteAttached(ctx); err != nil {
				r.cfg.Log.Warn("the attached programs are not noted for uninstall", "err", err)
			}
		case changed:
			r.cfg.Log.Error("the runtime's lock was removed and cannot be taken again", "err", err)
		}
	}
}
