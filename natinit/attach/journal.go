package attach

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
)

// The journal has the programs that we attached. They stay attached when their pins and maps are gone from sight with a
// bpffs (one that is unmounted lazily, or below another), and could then not be told from those of others.

// entry is a program as the journal has it: ids aren't given out twice before all others were, and a tag is a hash of
// the instructions.
func (l *ladder) entry(h bpf.Hook, p *ebpf.Program) (string, error) {
	info, err := p.Info()
	if err != nil {
		return "", fmt.Errorf("read program info: %w", err)
	}
	id, _ := info.ID()
	return fmt.Sprintf("%s id %d tag %s", l.cfg.Target.pinName(h), id, info.Tag), nil
}

// parseEntry reads an entry.
func parseEntry(entry string) (pin string, id ebpf.ProgramID, tag string, ok bool) {
	n, err := fmt.Sscanf(entry, "%s id %d tag %s", &pin, &id, &tag)
	return pin, id, tag, n == 3 && err == nil
}

// isGone reports whether the kernel has no program any more with the id in an entry.
func isGone(entry string) bool {
	_, id, _, ok := parseEntry(entry)
	if !ok {
		return false
	}
	p, err := ebpf.NewProgramFromID(id)
	if err == nil {
		p.Close()
	}
	return errors.Is(err, os.ErrNotExist)
}

// record has programs in the journal before they are attached. Those that are gone are forgotten: a node that is never
// rebooted would else collect those of each version.
func (a *Attached) record(progs map[string]*ebpf.Program) error {
	if a.cfg.Journal == nil {
		return nil
	}
	var entries []string
	for _, h := range a.cfg.Programs.AllHooks() {
		p, ok := progs[h.Name]
		if !ok {
			continue
		}
		e, err := a.entry(h, p)
		if err != nil {
			return err
		}
		if !a.cfg.Journal.Has(a.cfg.Target.kind(), e) {
			entries = append(entries, e)
		}
	}
	if len(entries) == 0 {
		return nil
	}
	if err := a.cfg.Journal.ForgetIf(a.cfg.Target.kind(), isGone); err != nil {
		return err
	}
	former := ""
	if d, ok := a.site.(*openDevice); ok {
		ns, err := currentNetns()
		if err != nil {
			return err
		}
		former = fmt.Sprintf(deviceFormer, best(d.Device), ns, d.attrs.Name)
	}
	return a.cfg.Journal.RecordAll(a.cfg.Target.kind(), entries, former)
}

// deviceFormer is what the journal has of a program of a device besides its entry: in which way it was attached when it
// was recorded, and where.
const deviceFormer = "%s netns %d device %s"

// recordKept records those that were attached already: by a version that kept no
// journal, or in one that was lost.
func (a *Attached) recordKept() error {
	kept := map[string]*ebpf.Program{}
	defer func() {
		for _, p := range kept {
			p.Close()
		}
	}()
	for _, res := range a.Hooks {
		if res.Change != Kept {
			continue
		}
		p, err := ebpf.NewProgramFromID(res.Program)
		if err != nil {
			return fmt.Errorf("open attached program: %w", err)
		}
		kept[res.Hook] = p
	}
	return a.record(kept)
}

// orphan reports whether an attached program is one of ours whose table is
// gone from sight. It must not run before the new one, which would then see
// nothing but backends.
func (l *ladder) orphan(h bpf.Hook, p *ebpf.Program) (bool, error) {
	if !l.recorded {
		return false, nil
	}
	e, err := l.entry(h, p)
	if err != nil || !l.cfg.Journal.Has(l.cfg.Target.kind(), e) {
		return false, err
	}
	known, err := l.cfg.Programs.Inspect(p)
	return err == nil && !known.Ours, err
}

// orphanLink finds the link of an orphan, to be taken over or detached, and its program; nil: there is none.
// Below 5.8 links can't be listed.
func (l *ladder) orphanLink(h bpf.Hook) (found link.Link, program ebpf.ProgramID, err error) {
	if !l.recorded {
		return nil, 0, nil
	}
	err = l.site.eachLink(l.cfg.Links, func(candidate link.Link) (bool, error) {
		info, err := candidate.Info()
		if err != nil {
			return false, nil // of another kind, or gone by now
		}
		if _, here, _ := l.cfg.Target.linked(h, info); !here {
			return false, nil
		}
		p, err := ebpf.NewProgramFromID(info.Program)
		if err != nil {
			return false, nil // gone by now
		}
		defer p.Close()
		is, err := l.orphan(h, p)
		if err != nil || !is {
			return false, err
		}
		found, program = candidate, info.Program
		return true, nil
	})
	if errors.Is(err, objects.ErrNotSupported) {
		err = nil
	}
	return found, program, err
}

// detachOrphans detaches orphans that are attached without a link, now and not
// at Commit; Rollback attaches them again.
func (a *Attached) detachOrphans(h bpf.Hook) error {
	if !a.recorded {
		return nil
	}
	orphans, err := a.selected(h, func(p *ebpf.Program) (bool, error) { return a.orphan(h, p) })
	for _, p := range orphans {
		if err == nil {
			err = a.site.detach(h, p)
			a.undo = append(a.undo, func() error { _, err := a.site.attach(h, p, nil, false); return err })
		}
	}
	return err
}

// forgetPrograms removes the programs of a target from the journal.
func (l *ladder) forgetPrograms() error {
	if l.cfg.Journal == nil {
		return nil
	}
	return l.cfg.Journal.ForgetIf(l.cfg.Target.kind(), l.isOfTarget)
}

// isOfTarget reports whether an entry is of a hook of this target.
func (l *ladder) isOfTarget(entry string) bool {
	return slices.ContainsFunc(l.cfg.Programs.AllHooks(), func(h bpf.Hook) bool {
		return strings.HasPrefix(entry, l.cfg.Target.pinName(h)+" ")
	})
}
