package attach

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
)

// ensureLink attaches by a link. Between attach and pin the link is held by this process alone: killed there, nothing
// is left attached.
func (a *Attached) ensureLink(res *Result) error {
	h, pin := res.at.Hook, res.at.pin(a.cfg.Pins)
	former, info, err := ownLink(pin, a.cfg.Target, h)
	if err != nil {
		return err
	}
	note := ""
	if former != nil {
		a.closes = append(a.closes, former.Close)
		var here bool
		if _, here, note = a.cfg.Target.linked(h, info); here {
			if !a.front[h.Name] {
				return a.updateLink(res, former, info.Program)
			}
			note = "attached anew, before the programs of others"
		}
		a.replaced = append(a.replaced, former)
	}
	l, program, err := a.orphanLink(h)
	if err != nil {
		return err
	}
	if l != nil {
		a.closes = append(a.closes, l.Close)
		note = "taken over from an instance whose pins are gone"
		err = a.updateLink(res, l, program)
	} else {
		l, err = a.attachLink(res, h)
	}
	if err != nil {
		return err
	}
	res.Note = note
	if err := a.pinLink(l, pin, former, h); err != nil {
		return err
	}
	return a.noteFormer(res)
}

func (a *Attached) attachLink(res *Result, h bpf.Hook) (link.Link, error) {
	prog, id, err := a.program(h)
	if err != nil {
		return nil, err
	}
	l, err := a.site.link(h, prog)
	if err != nil {
		return nil, a.explain(h, err)
	}
	a.closes = append(a.closes, l.Close)
	a.undo = append(a.undo, func() error { return detach(l) })
	res.Change, res.Program = Added, id
	return l, nil
}

// noteFormer has the result of an attach by a new link say what it takes the place of.
func (a *Attached) noteFormer(res *Result) error {
	if !a.cfg.Target.newRunsFirst() || res.Change != Added {
		return nil
	}
	a.serves[res.Program] = true
	former, err := a.attachedOurs(res.at.Hook)
	if len(former) > 0 {
		res.Change = Changed
		if res.Note == "" {
			res.Note = "attached before by " + string(a.cfg.Target.by(false))
		}
	}
	return err
}

// updateLink exchanges the program of a link that is where it should be.
func (a *Attached) updateLink(res *Result, l link.Link, program ebpf.ProgramID) error {
	res.Program = program
	old, err := ebpf.NewProgramFromID(program)
	if err != nil {
		return fmt.Errorf("open attached program: %w", err)
	}
	a.closes = append(a.closes, old.Close)
	if known, err := a.cfg.Programs.Inspect(old); err != nil || known.Current {
		res.Change = Kept
		return err
	}
	prog, id, err := a.program(res.at.Hook)
	if err != nil {
		return err
	}
	if err := l.Update(prog); err != nil {
		return fmt.Errorf("exchange program: %w", err)
	}
	a.undo = append(a.undo, func() error { return l.Update(old) })
	res.Change, res.Program = Changed, id
	return nil
}

// pinLink pins a link at its place, over the pin of a former one that is
// attached elsewhere or dead.
func (a *Attached) pinLink(l link.Link, pin string, former link.Link, h bpf.Hook) error {
	if err := bpf.EnsureDir(a.cfg.Pins.Links()); err != nil {
		return err
	}
	if err := removeLink(pin+nextSuffix, a.cfg.Target, h); err != nil {
		return fmt.Errorf("remove left-over pin: %w", err)
	}
	if err := repin(l, pin); err != nil {
		return err
	}
	a.undo = append(a.undo, func() error {
		if former != nil {
			return repin(former, pin)
		}
		return removePin(pin)
	})
	return nil
}

// detach detaches at once where the kernel can (5.9); else closing the last
// handle does, a little later.
func detach(l link.Link) error {
	err := l.Detach()
	if err == nil || errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return fmt.Errorf("detach link: %w", err)
}
