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

// nextSuffix marks a pin that is about to take its place by a rename. Not
// ".new": bpffs refuses names with a dot (kernel/bpf/inode.c, bpf_lookup).
const nextSuffix = "_new"

// ensureLink attaches by bpf_link. Between attach and pin the link is held by
// this process alone: killed there, nothing is left attached.
func (a *Attached) ensureLink(h bpf.Hook) (Result, error) {
	res := Result{Hook: h.Name, By: ByLink}
	pin := filepath.Join(a.cfg.Pins.Links(), h.Name)
	former, state, err := a.openLink(pin, h)
	if err != nil {
		return res, err
	}
	if state.here {
		return a.updateLink(h, former, state, res)
	}
	if former == nil {
		if res, err := a.adoptLink(h, pin, res); err != nil || res.Program != 0 {
			return res, err
		}
	}
	prog, err := a.program(h)
	if err != nil {
		return res, err
	}
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(a.cgroup.Fd()), Program: prog, Attach: h.Attach})
	if err != nil {
		return res, explainAttach(a.cgroup, h, a.cfg.Proc, err)
	}
	a.closes = append(a.closes, l.Close)
	if err := a.pinLink(h, l, pin, former); err != nil {
		return res, err
	}
	res.Change, res.Note = Added, state.note
	res.Program, err = programID(prog)
	return res, err
}

// adoptLink takes over the link of an orphan and pins it. A result without a
// program says that there is none.
func (a *Attached) adoptLink(h bpf.Hook, pin string, res Result) (Result, error) {
	l, state, err := a.orphanLink(h)
	if l == nil {
		return res, err
	}
	if res, err = a.updateLink(h, l, state, res); err != nil {
		return res, err
	}
	if err := bpf.EnsureDir(a.cfg.Pins.Links()); err != nil {
		return res, err
	}
	raw, ok := l.(interface{ FD() int })
	if !ok {
		return res, fmt.Errorf("take over link: it has no file descriptor")
	}
	if err := repin(raw.FD(), pin); err != nil {
		return res, err
	}
	a.undo = append(a.undo, func() error { return removePin(pin) })
	res.Note = state.note
	return res, nil
}

// updateLink exchanges the program of a link that is where it should be.
func (a *Attached) updateLink(h bpf.Hook, l link.Link, state linkState, res Result) (Result, error) {
	res.Program = state.program
	old, err := ebpf.NewProgramFromID(state.program)
	if err != nil {
		return res, fmt.Errorf("open attached program: %w", err)
	}
	a.closes = append(a.closes, old.Close)
	if same, err := a.current(old); err != nil || same {
		res.Change = Kept
		return res, err
	}
	prog, err := a.program(h)
	if err != nil {
		return res, err
	}
	if err := l.Update(prog); err != nil {
		return res, fmt.Errorf("exchange program: %w", err)
	}
	a.undo = append(a.undo, func() error { return l.Update(old) })
	res.Change = Changed
	res.Program, err = programID(prog)
	return res, err
}

// pinLink pins a new link at its place, over the pin of a former one that is
// attached elsewhere or dead.
func (a *Attached) pinLink(h bpf.Hook, l *link.RawLink, pin string, former link.Link) error {
	if err := bpf.EnsureDir(a.cfg.Pins.Links()); err != nil {
		return err
	}
	next := pin + nextSuffix
	if err := removeLink(next, h); err != nil {
		return fmt.Errorf("remove left-over pin: %w", err)
	}
	if err := l.Pin(next); err != nil {
		return fmt.Errorf("pin link: %w", err)
	}
	if err := os.Rename(next, pin); err != nil {
		os.Remove(next)
		return fmt.Errorf("move pinned link into place: %w", err)
	}
	a.undo = append(a.undo, func() error {
		if former != nil {
			return errors.Join(repin(former.(interface{ FD() int }).FD(), pin), detach(l))
		}
		return errors.Join(os.Remove(pin), detach(l))
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

type linkState struct {
	here    bool // attached to our cgroup, at this hook
	program ebpf.ProgramID
	note    string // why a pinned link is not used
}

// openLink opens the pinned link of a hook; nil if there is none. A link whose
// cgroup died has id 0 there; one in another cgroup is from a run that took the
// wrong one for the root.
func (a *Attached) openLink(pin string, h bpf.Hook) (link.Link, linkState, error) {
	l, info, err := ownLink(pin, h)
	if l == nil {
		return nil, linkState{}, err
	}
	a.closes = append(a.closes, l.Close)
	switch cg := info.Cgroup(); cg.CgroupId {
	case a.cfg.CgroupID:
		return l, linkState{here: true, program: info.Program}, nil
	case 0:
		return nil, linkState{note: "the former link is detached, or its cgroup is gone"}, nil
	default:
		return l, linkState{note: fmt.Sprintf("moved here from the cgroup with id %d", cg.CgroupId)}, nil
	}
}
