package bootstrap

import (
	"fmt"
	"slices"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
)

// kindProgram notes a program that we attached, by id and tag.
const kindProgram = "program"

// programRecord keeps programs in the list of changes that a reboot undoes.
type programRecord struct{ ledger *Ledger }

var _ natinit.Record = programRecord{}

func (r programRecord) Note(progs []natinit.RecordedProgram) error {
	var targets []string
	for _, p := range progs {
		targets = append(targets, programKey(p))
	}
	return r.ledger.recordAll(kindProgram, targets)
}

func (r programRecord) Noted(p natinit.RecordedProgram) bool {
	return r.ledger != nil && r.ledger.Has(kindProgram, programKey(p))
}

func (r programRecord) Empty() bool {
	return r.ledger == nil || !slices.ContainsFunc(r.ledger.entries, func(e Entry) bool { return e.Kind == kindProgram })
}

func programKey(p natinit.RecordedProgram) string {
	return fmt.Sprintf("%s id %d tag %s", p.Hook, p.ID, p.Tag)
}

// removeAttached removes everything of an instance from the kernel, and the
// notes about it: what its bpffs tells, and what was noted in case that is gone.
func removeAttached(bpffs mounts.BPFFS, cgroup mounts.Cgroup2, ledger *Ledger) error {
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
	if err := natinit.RemoveRecorded(path, cgroup.ID, programRecord{ledger}); err != nil {
		return err
	}
	return ledger.forgetAll(kindProgram)
}
