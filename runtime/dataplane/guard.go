package dataplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
)

// The guard: others may unmount the bpffs, remove pins, detach programs, or
// replace the cgroup. Handles that the runtime holds keep all of it serving
// meanwhile, where the kernel has handles for it.

const (
	// lookInterval is how often it is looked whether anything changed: a few
	// system calls, no lock.
	lookInterval = 500 * time.Millisecond
	// attachInterval is how often everything is verified, whatever the looks say.
	attachInterval = 30 * time.Second
	// repairRetry is the least time between repairs that fail.
	repairRetry = 5 * time.Second
)

// seen is how the dataplane was when it was last as it should be. Its lock is
// held for a few assignments only: health endpoints ask.
type seen struct {
	mu     sync.Mutex
	held   *attach.Handles
	cgroup string
	files  map[string]fileID // pins and the cgroup, by path
	maps   []ebpf.MapID      // of the table; a larger one shares some of them
	fault  error             // what the last repair could not repair
}

type fileID struct{ dev, ino uint64 }

func idOf(path string) fileID {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return fileID{}
	}
	return fileID{st.Dev, st.Ino}
}

// attached takes new handles of what is attached, and closes the former ones.
func (s *seen) attached(held *attach.Handles) error {
	s.mu.Lock()
	former := s.held
	s.held = held
	s.mu.Unlock()
	return former.Close()
}

func (s *seen) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.held
	s.held = nil
	return held.Close()
}

func (s *seen) hooks() (cgroup string, hooks []attach.Result, maps []ebpf.MapID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == nil {
		return s.cgroup, nil, s.maps
	}
	return s.cgroup, s.held.Hooks, s.maps
}

// look takes note of how everything is now.
func (d *Dataplane) look() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lookLocked()
}

func (d *Dataplane) lookLocked() {
	files := map[string]fileID{}
	note := func(path string) { files[path] = idOf(path) }
	note(d.pins.Dir)
	note(d.cgroup.Path)
	for _, pin := range d.pins.AllMapPins() {
		note(pin)
	}
	_, hooks, _ := d.seen.hooks()
	for _, h := range hooks {
		note(h.PinOf(d.pins))
	}
	var ids []ebpf.MapID
	for _, name := range bpf.MapNames() {
		if m := d.maps.Map(name); m != nil {
			if info, err := m.Info(); err == nil {
				id, _ := info.ID()
				ids = append(ids, id)
			}
		}
	}
	d.seen.mu.Lock()
	defer d.seen.mu.Unlock()
	d.seen.files, d.seen.cgroup, d.seen.maps = files, d.cgroup.Path, ids
}

// changed reports whether anything is not as it was.
func (d *Dataplane) changed() bool {
	d.seen.mu.Lock()
	files := maps.Clone(d.seen.files)
	d.seen.mu.Unlock()
	for path, id := range files {
		if idOf(path) != id {
			return true
		}
	}
	return d.Attached() != nil
}

// Attached asks the kernel whether the programs are attached. nil: they are,
// or are not meant to be (--scope off).
func (d *Dataplane) Attached() error {
	cgroup, hooks, table := d.seen.hooks()
	if len(hooks) == 0 {
		if d.balancer.Off {
			return nil
		}
		return errors.New("the programs are not attached")
	}
	return attach.CheckAttached(cgroup, hooks, table)
}

// Fault is what is wrong with the dataplane and could not be repaired; nil: nothing.
func (d *Dataplane) Fault() error {
	d.seen.mu.Lock()
	defer d.seen.mu.Unlock()
	return d.seen.fault
}

func (d *Dataplane) setFault(err error) {
	d.seen.mu.Lock()
	former := d.seen.fault
	d.seen.fault = err
	d.seen.mu.Unlock()
	switch {
	case err != nil && (former == nil || former.Error() != err.Error()):
		d.log.Error("cannot repair the dataplane; what is attached continues to serve", "err", err)
	case err == nil && former != nil:
		d.log.Info("the dataplane is repaired")
	}
}

// Guard looks after table and programs until ctx ends.
func (d *Dataplane) Guard(ctx context.Context) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	var verified, failed time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		due := time.Since(verified) >= attachInterval
		if !due && !d.changed() || time.Since(failed) < repairRetry {
			continue
		}
		err := d.ensure(ctx)
		if ctx.Err() != nil {
			return
		}
		verified = time.Now()
		if errors.Is(err, instance.ErrLocked) && d.Attached() == nil {
			failed = verified // an init stage is at work, which repairs too
			continue
		}
		d.setFault(err)
		if err != nil {
			failed = verified
		}
	}
}

// ensure verifies everything, and repairs what is not as it should be.
func (d *Dataplane) ensure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	return d.locked(ctx, func(j *instance.Journal) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		errs := []error{d.ensureBPFFS(ctx, j)}
		if errs[0] == nil {
			errs = append(errs, d.ensurePins())
		}
		errs = append(errs, d.ensureCgroup())
		if errs[0] == nil || d.Attached() != nil {
			errs = append(errs, d.attach(j))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		d.lookLocked()
		return nil
	})
}

// ensureBPFFS has the table's directory at its place again. One that another
// mount hides is not brought back by a further one.
func (d *Dataplane) ensureBPFFS(ctx context.Context, j *instance.Journal) error {
	if d.hold.IsAt(d.pins.Dir) {
		return nil
	}
	c := d.cfg.Given.ForBPFFS()
	if j != nil {
		c.Record = j.Record
	}
	b, err := mounts.EnsureBPFFS(ctx, c)
	if err == nil {
		err = b.Err()
	}
	if err != nil {
		return fmt.Errorf("the table's directory %s is gone; what is attached lives as long as this process: %w", d.pins.Dir, err)
	}
	if err := bpf.EnsureDir(d.pins.Dir); err != nil {
		return err
	}
	hold, err := instance.HoldTable(d.pins.Dir)
	if err != nil {
		return err
	}
	d.log.Warn("the table's directory was gone, and is made again", "dir", d.pins.Dir, "mounted", b.Actions)
	// The former one stays open until everything is pinned again: what is
	// attached without a handle of ours depends on its pins there.
	former := d.hold
	d.hold = hold
	if err := d.ensurePins(); err != nil {
		d.hold = former
		return errors.Join(err, hold.Release())
	}
	return former.Release()
}

// ensurePins has the pins lead to what is in use.
func (d *Dataplane) ensurePins() error {
	names, err := natinit.EnsureMapPins(d.pins, d.maps)
	if len(names) > 0 {
		d.log.Warn("pins of maps were gone or led elsewhere, and lead to the table again", "maps", names)
	}
	if err != nil {
		return err
	}
	d.seen.mu.Lock()
	held := d.seen.held
	d.seen.mu.Unlock()
	hooks, err := held.Repin(d.pins)
	if len(hooks) > 0 {
		d.log.Warn("pins of links were gone, and are there again", "hooks", hooks)
	}
	return err
}

// ensureCgroup finds the cgroup again where another took its place.
func (d *Dataplane) ensureCgroup() error {
	id, err := mounts.CgroupID(d.cgroup.Path)
	if err == nil && id == d.cgroup.ID {
		return nil
	}
	g, err := mounts.FindCgroup2(d.cfg.Given.ForCgroup())
	if err == nil {
		err = g.Err()
	}
	if err != nil {
		return fmt.Errorf("the cgroup %s is gone: %w", d.cgroup.HostPath, err)
	}
	d.log.Warn("the cgroup was replaced: attaching to the one that is there now", "cgroup", g.HostPath, "id", g.ID, "former", d.cgroup.ID)
	d.cgroup = g
	return nil
}
