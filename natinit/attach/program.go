package attach

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
)

// ensureProg attaches without a link. The program is pinned before it is attached, which marks it; but what counts is
// what the kernel says is attached and uses our maps.
func (a *Attached) ensureProg(res *Result) error {
	h := res.at.Hook
	former, err := a.attachedOurs(h)
	if err != nil {
		return err
	}
	a.former[h.Name] = former
	for _, p := range former {
		known, err := a.cfg.Programs.Inspect(p)
		if err != nil {
			return err
		}
		keeps, err := a.site.keeps(h, known.ID)
		if err != nil {
			return err
		}
		if known.Current && keeps && !a.front[h.Name] {
			return a.keepProg(res, p, known.ID)
		}
	}
	if err := a.attachProg(res, former); err != nil {
		return err
	}
	res.Change = Added
	if len(former) > 0 {
		res.Change = Changed
	}
	return nil
}

// keepProg leaves a program as it is: attached by a link, from a run that had
// links, or marked by its pin, which a killed run may not have come to.
func (a *Attached) keepProg(res *Result, p *ebpf.Program, id ebpf.ProgramID) error {
	res.Change, res.Program = Kept, id
	h := res.at.Hook
	linked, err := linkedProgram(a.linkPin(h), a.cfg.Target, h)
	if err != nil {
		return err
	}
	if linked == id {
		res.By = a.cfg.Target.by(true)
		return nil
	}
	pin := res.at.pin(a.cfg.Pins)
	pinned, err := pinnedProgram(pin, h)
	if err != nil || pinned == id {
		return err
	}
	if err := bpf.EnsureDir(a.cfg.Pins.Progs()); err != nil {
		return err
	}
	return repin(p, pin)
}

func (a *Attached) attachProg(res *Result, former []*ebpf.Program) error {
	h, pin := res.at.Hook, res.at.pin(a.cfg.Pins)
	prog, id, err := a.program(h)
	if err != nil {
		return err
	}
	res.Program = id
	if err := bpf.EnsureDir(a.cfg.Pins.Progs()); err != nil {
		return err
	}
	pinned, err := ownProg(pin, h)
	if err != nil {
		return err
	}
	if pinned != nil {
		a.closes = append(a.closes, pinned.Close)
	}
	next := pin + nextSuffix
	if err := removeProg(next, h, nil); err != nil {
		return fmt.Errorf("remove left-over pin: %w", err)
	}
	if err := prog.Pin(next); err != nil {
		return fmt.Errorf("pin program: %w", err)
	}
	undo, err := a.site.attach(h, prog, former, a.front[h.Name])
	if err != nil {
		os.Remove(next)
		return a.explain(h, err)
	}
	a.undo = append(a.undo, func() error {
		if pinned != nil {
			return errors.Join(undo(), repin(pinned, pin))
		}
		return errors.Join(undo(), removePin(pin), removePin(next))
	})
	if err := os.Rename(next, pin); err != nil {
		return fmt.Errorf("move pinned program into place: %w", err)
	}
	return nil
}

// attachedOurs are the programs of ours that are attached at a hook, by whatever means, in the order in which they run;
// and the pinned one, even if the table that it was loaded for is gone. Of a target where new programs run first, also
// those that only the journal has.
func (a *Attached) attachedOurs(h bpf.Hook) ([]*ebpf.Program, error) {
	pinned, err := pinnedProgram(a.progPin(h), h)
	if err != nil {
		return nil, err
	}
	return a.selected(h, func(p *ebpf.Program) (bool, error) {
		known, err := a.cfg.Programs.Inspect(p)
		if err != nil || known.Ours || known.ID == pinned || !a.cfg.Target.newRunsFirst() {
			return known.Ours || known.ID == pinned, err
		}
		return a.orphan(h, p)
	})
}

// detachOthers detaches the programs of ours at a hook that no longer serve: the pinned link of a hook that isn't needed
// any more or is served without one, what is attached without a link and isn't this run's, and what a killed run left on
// the way to its pin.
func (a *Attached) detachOthers(h bpf.Hook) error {
	pin, progPin := a.linkPin(h), a.progPin(h)
	errs := []error{removeLink(pin+nextSuffix, a.cfg.Target, h)}
	for _, l := range a.replaced { // one that is held elsewhere, too, wouldn't be detached with its pin
		errs = append(errs, detach(l))
	}
	a.replaced = nil
	linked, err := linkedProgram(pin, a.cfg.Target, h)
	errs = append(errs, err)
	if linked != 0 && !a.serves[linked] {
		errs = append(errs, removeLink(pin, a.cfg.Target, h))
	}
	ours, err := a.attachedOurs(h)
	errs = append(errs, err)
	for _, p := range append(ours, a.former[h.Name]...) {
		id, err := programID(p)
		if err == nil && !a.serves[id] {
			err = a.site.detach(h, p)
		}
		errs = append(errs, err)
	}
	pinned, err := pinnedProgram(progPin, h)
	errs = append(errs, err)
	if pinned != 0 && !a.serves[pinned] {
		errs = append(errs, removeProg(progPin, h, nil))
	}
	return errors.Join(append(errs, removeProg(progPin+nextSuffix, h, nil))...)
}

func (l *ladder) linkPin(h bpf.Hook) string {
	return Attachment{l.cfg.Target, h, l.cfg.Target.by(true)}.pin(l.cfg.Pins)
}

func (l *ladder) progPin(h bpf.Hook) string {
	return Attachment{l.cfg.Target, h, l.cfg.Target.by(false)}.pin(l.cfg.Pins)
}
