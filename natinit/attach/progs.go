package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// allowMulti is BPF_F_ALLOW_MULTI: other programs may be attached beside ours.
// Without it an attach would replace another's flagless program silently.
const allowMulti = 1 << 1

// allowOverride is BPF_F_ALLOW_OVERRIDE: cgroups below may have a program in
// place of this one.
const allowOverride = 1 << 0

// ensureProg attaches by BPF_PROG_ATTACH. The program is pinned before it is
// attached, which records it; but what counts is what the kernel says is
// attached and uses our maps.
func (a *Attached) ensureProg(h bpf.Hook) (Result, error) {
	res := Result{Hook: h.Name, By: ByProg}
	former, err := a.attachedOurs(h)
	if err != nil {
		return res, err
	}
	a.former[h.Name] = former
	for _, p := range former {
		same, err := a.current(p)
		if err != nil {
			return res, err
		}
		if same {
			return a.keepProg(h, p, res)
		}
	}
	prog, err := a.program(h)
	if err != nil {
		return res, err
	}
	if err := a.attachProg(h, prog); err != nil {
		return res, err
	}
	res.Change = Added
	if len(former) > 0 {
		res.Change = Changed
	}
	res.Program, err = programID(prog)
	return res, err
}

// keepProg leaves a program as it is: attached by a link, from a run that had
// links, or recorded by its pin, which a killed run may not have come to.
func (a *Attached) keepProg(h bpf.Hook, p *ebpf.Program, res Result) (Result, error) {
	res.Change = Kept
	var err error
	if res.Program, err = programID(p); err != nil {
		return res, err
	}
	linked, err := linkedProgram(a.cfg.Pins, h)
	if err != nil {
		return res, err
	}
	if linked == res.Program {
		res.By = ByLink
		return res, nil
	}
	pinned, err := pinnedProgram(a.cfg.Pins, h)
	if err != nil || pinned == res.Program {
		return res, err
	}
	if err := bpf.EnsureDir(a.cfg.Pins.Progs()); err != nil {
		return res, err
	}
	return res, repin(p.FD(), filepath.Join(a.cfg.Pins.Progs(), h.Name))
}

func (a *Attached) attachProg(h bpf.Hook, prog *ebpf.Program) error {
	if err := bpf.EnsureDir(a.cfg.Pins.Progs()); err != nil {
		return err
	}
	pin := filepath.Join(a.cfg.Pins.Progs(), h.Name)
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
	target := int(a.cgroup.Fd())
	err = link.RawAttachProgram(link.RawAttachProgramOptions{Target: target, Program: prog, Attach: h.Attach, Flags: allowMulti})
	if err != nil {
		os.Remove(next)
		return explainAttach(a.cgroup, h, a.cfg.Proc, err)
	}
	a.undo = append(a.undo, func() error { return a.takeBackProg(h, prog, pin, pinned) })
	if err := os.Rename(next, pin); err != nil {
		return fmt.Errorf("move pinned program into place: %w", err)
	}
	return nil
}

// takeBackProg detaches a program; pinned is what its pin held before, if anything.
func (a *Attached) takeBackProg(h bpf.Hook, prog *ebpf.Program, pin string, pinned *ebpf.Program) error {
	err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(a.cgroup.Fd()), Program: prog, Attach: h.Attach})
	if pinned != nil {
		return errors.Join(err, repin(pinned.FD(), pin))
	}
	return errors.Join(err, removePin(pin), removePin(pin+nextSuffix))
}

// linkedProgram is the program of a hook's pinned link; 0 if there is no link of ours.
func linkedProgram(pins bpf.Pins, h bpf.Hook) (ebpf.ProgramID, error) {
	l, info, err := ownLink(filepath.Join(pins.Links(), h.Name), h)
	if l == nil {
		return 0, err
	}
	return info.Program, l.Close()
}

// attachedOurs are the programs of our table that are attached at a hook, by
// whatever means, in the order in which they run; and the pinned one, even if
// the table that it was loaded for is gone.
func (a *Attached) attachedOurs(h bpf.Hook) ([]*ebpf.Program, error) {
	pinned, err := pinnedProgram(a.cfg.Pins, h)
	if err != nil {
		return nil, err
	}
	var ours []*ebpf.Program
	err = Each(a.cgroup, h, func(p *ebpf.Program) error {
		l, err := bpf.Inspect(p, a.cfg.Maps)
		if err != nil {
			return err
		}
		if !l.Ours && l.ID != pinned {
			return nil
		}
		kept, err := p.Clone()
		if err != nil {
			return err
		}
		a.closes = append(a.closes, kept.Close)
		ours = append(ours, kept)
		return nil
	})
	return ours, err
}

// pinnedProgram is the program that is pinned for a hook; 0 if there is none.
func pinnedProgram(pins bpf.Pins, h bpf.Hook) (ebpf.ProgramID, error) {
	p, err := ownProg(filepath.Join(pins.Progs(), h.Name), h)
	if p == nil {
		return 0, err
	}
	defer p.Close()
	return programID(p)
}

// Each calls visit for every program at a hook of a cgroup.
func Each(cgroup *os.File, h bpf.Hook, visit func(*ebpf.Program) error) error {
	_, ids, err := queryFlags(cgroup, h.Attach)
	if errors.Is(err, unix.EINVAL) {
		return nil // a hook that this kernel doesn't have
	}
	if err != nil {
		return fmt.Errorf("list programs of %s: %w", cgroup.Name(), err)
	}
	for _, id := range ids {
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, os.ErrNotExist) {
			continue // went away since
		}
		if err != nil {
			return fmt.Errorf("open program %d: %w", id, err)
		}
		err = visit(p)
		p.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// detachOthers detaches the programs of ours at a hook that no longer serve:
// the pinned link of a hook that isn't needed any more or is served without
// one, what is attached by BPF_PROG_ATTACH and isn't this run's, and what a
// killed run left on the way to its pin.
func (a *Attached) detachOthers(h bpf.Hook) error {
	pin := filepath.Join(a.cfg.Pins.Links(), h.Name)
	progPin := filepath.Join(a.cfg.Pins.Progs(), h.Name)
	errs := []error{removeLink(pin+nextSuffix, h)}
	linked, err := linkedProgram(a.cfg.Pins, h)
	errs = append(errs, err)
	if linked != 0 && !a.serves[linked] {
		errs = append(errs, removeLink(pin, h))
	}
	ours, err := a.attachedOurs(h)
	errs = append(errs, err)
	for _, p := range append(ours, a.former[h.Name]...) {
		id, err := programID(p)
		if err != nil || a.serves[id] {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, detachProg(a.cgroup, h, p))
	}
	pinned, err := pinnedProgram(a.cfg.Pins, h)
	errs = append(errs, err)
	if pinned != 0 && !a.serves[pinned] {
		errs = append(errs, removeProg(progPin, h, nil))
	}
	return errors.Join(append(errs, removeProg(progPin+nextSuffix, h, nil))...)
}

// detachProg detaches what was attached by BPF_PROG_ATTACH. A program that
// isn't attached (any more), or only by a link, is none of this call's.
func detachProg(cgroup *os.File, h bpf.Hook, p *ebpf.Program) error {
	err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(cgroup.Fd()), Program: p, Attach: h.Attach})
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("detach program of %s: %w", h.Name, err)
}
