package natinit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/firsthop/firsthop/bpf"
)

// allowMulti is BPF_F_ALLOW_MULTI: other programs may be attached beside ours.
// Without it an attach would replace another's flagless program silently.
const allowMulti = 1 << 1

// ensureProg attaches by BPF_PROG_ATTACH. The program is pinned before it is
// attached, which records it; but what counts is what the kernel says is
// attached and uses our maps.
func (a *Attached) ensureProg(h bpf.Hook) (HookResult, error) {
	res := HookResult{Hook: h.Name, By: ByProg}
	former, err := a.attachedOurs(h)
	if err != nil {
		return res, err
	}
	for _, p := range former {
		same, err := a.current(p)
		if err != nil {
			return res, err
		}
		if same {
			res.Change = Kept
			res.Program, err = programID(p)
			return res, err
		}
	}
	prog, err := a.program(h)
	if err != nil {
		return res, err
	}
	if err := a.attachProg(h, prog, former); err != nil {
		return res, err
	}
	res.Change = Added
	if len(former) > 0 {
		res.Change = Changed
	}
	res.Program, err = programID(prog)
	return res, err
}

func (a *Attached) attachProg(h bpf.Hook, prog *ebpf.Program, former []*ebpf.Program) error {
	if err := ensureDir(a.cfg.Pins.Progs()); err != nil {
		return err
	}
	pin := filepath.Join(a.cfg.Pins.Progs(), h.Name)
	next := pin + nextSuffix
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove left-over pin: %w", err)
	}
	if err := prog.Pin(next); err != nil {
		return fmt.Errorf("pin program: %w", err)
	}
	target := int(a.cgroup.Fd())
	err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: target, Program: prog, Attach: h.Attach, Flags: allowMulti})
	if err != nil {
		os.Remove(next)
		return explainAttach(a.cgroup, h, a.cfg.Proc, err)
	}
	a.undo = append(a.undo, func() error { return a.takeBackProg(h, prog, pin, former) })
	if err := os.Rename(next, pin); err != nil {
		return fmt.Errorf("move pinned program into place: %w", err)
	}
	return nil
}

func (a *Attached) takeBackProg(h bpf.Hook, prog *ebpf.Program, pin string, former []*ebpf.Program) error {
	err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(a.cgroup.Fd()), Program: prog, Attach: h.Attach})
	os.Remove(pin + nextSuffix)
	if e := os.Remove(pin); e != nil && !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, e)
	}
	if len(former) > 0 {
		err = errors.Join(err, former[0].Pin(pin))
	}
	return err
}

// attachedOurs are the programs of our table that are attached at a hook, by
// whatever means, in the order in which they run.
func (a *Attached) attachedOurs(h bpf.Hook) ([]*ebpf.Program, error) {
	var ours []*ebpf.Program
	err := eachAttached(a.cgroup, h, func(p *ebpf.Program) error {
		l, err := bpf.Inspect(p, a.cfg.Maps)
		if err != nil || !l.Ours {
			return err
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

// eachAttached calls visit for every program at a hook of a cgroup.
func eachAttached(cgroup *os.File, h bpf.Hook, visit func(*ebpf.Program) error) error {
	q, err := link.QueryPrograms(link.QueryOptions{Target: int(cgroup.Fd()), Attach: h.Attach})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list programs of %s: %w", cgroup.Name(), err)
	}
	for _, at := range q.Programs {
		p, err := ebpf.NewProgramFromID(at.ID)
		if errors.Is(err, os.ErrNotExist) {
			continue // went away since
		}
		if err != nil {
			return fmt.Errorf("open program %d: %w", at.ID, err)
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
// the pinned link of a hook that isn't needed any more, and what is attached
// by BPF_PROG_ATTACH and isn't this run's.
func (a *Attached) detachOthers(h bpf.Hook) error {
	needed := false
	for _, res := range a.Hooks {
		needed = needed || res.Hook == h.Name
	}
	var errs []error
	if !needed {
		errs = append(errs, removeLink(filepath.Join(a.cfg.Pins.Links(), h.Name)))
	}
	serving := false
	ours, err := a.attachedOurs(h)
	errs = append(errs, err)
	for _, p := range ours {
		id, err := programID(p)
		if err != nil || a.serves[id] {
			errs = append(errs, err)
			serving = serving || err == nil
			continue
		}
		errs = append(errs, detachProg(a.cgroup, h, p))
	}
	if !serving || a.cfg.Features.Link {
		errs = append(errs, removePin(filepath.Join(a.cfg.Pins.Progs(), h.Name)))
	}
	return errors.Join(errs...)
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

func removePin(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin: %w", err)
	}
	return nil
}

// removeLink detaches and unpins a link of ours.
func removeLink(pin string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s doesn't hold a BPF link (%s), left alone: %w", pin, err, bpf.ErrForeign)
	}
	defer l.Close()
	return errors.Join(detach(l), removePin(pin))
}
