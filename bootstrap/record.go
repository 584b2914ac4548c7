package bootstrap

import (
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/instance"
)

// removeAttached removes everything of an instance from the kernel, and the
// notes about it: what its bpffs tells, and what was noted in case that is gone.
func removeAttached(bpffs mounts.BPFFS, cgroup mounts.Cgroup2, journal *instance.Journal) error {
	path := cgroup.Path
	if cgroup.Err() != nil {
		path = "" // there is nothing that programs could be attached to
	}
	if bpffs.Err() == nil {
		if err := natinit.CheckPins(bpf.PinsBelow(bpffs.Path), bpf.Hooks()); err != nil {
			return err // before anything is detached
		}
		if err := natinit.Remove(bpf.PinsBelow(bpffs.Path), path); err != nil {
			return err
		}
	}
	if path == "" {
		return nil
	}
	if err := natinit.RemoveRecorded(path, cgroup.ID, natinit.JournalRecord{Journal: journal}); err != nil {
		return err
	}
	return journal.ForgetAll(instance.KindProgram)
}
