package bootstrap

import (
	"errors"
	"log/slog"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
)

// attachment is what of an instance is in the kernel.
type attachment struct {
	bpffs   mounts.BPFFS
	cgroup  mounts.Cgroup2
	journal *instance.Journal
	links   objects.Links // of the machine
	log     *slog.Logger
}

// recorded is what was noted in case the bpffs is gone. ok is false where there
// is nothing that programs could be attached to.
func (a attachment) recorded() (r attach.Removal, ok bool) {
	if a.cgroup.Err() != nil {
		return r, false
	}
	return attach.Removal{Cgroup: a.cgroup.Path, CgroupID: a.cgroup.ID, Record: attach.JournalRecord{Journal: a.journal}, Links: a.links}, true
}

// check finds out, without any change, whether remove can find everything.
func (a attachment) check() error {
	if a.bpffs.Err() == nil {
		if err := attach.CheckPins(bpf.PinsBelow(a.bpffs.Path), bpf.Hooks()); err != nil {
			return err
		}
	}
	if r, ok := a.recorded(); ok {
		return r.Check()
	}
	return nil
}

// remove removes everything of an instance from the kernel, and the notes about
// it: what its bpffs tells, and what was noted in case that is gone. Everything
// is looked for before anything is detached.
func (a attachment) remove() error {
	if err := a.check(); err != nil {
		return err
	}
	r, attachable := a.recorded()
	if a.bpffs.Err() == nil {
		if err := attach.Remove(bpf.PinsBelow(a.bpffs.Path), r.Cgroup); err != nil {
			return err
		}
	}
	if !attachable {
		return nil
	}
	err := r.Remove()
	if errors.Is(err, attach.ErrStillAttached) {
		a.log.Warn("a program is left behind", "error", err)
		err = nil
	}
	if err != nil {
		return err
	}
	return a.journal.ForgetAll(instance.KindProgram)
}
