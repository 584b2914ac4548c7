package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/natinit/instance"
)

// Attachment is where one program runs, and how it is attached there.
type Attachment struct {
	Target Target
	Hook   bpf.Hook
	By     By
}

// By is the way in which a program is attached.
type By string

// The ways. A target has two: by a link, and below that one without. What is lost without a link: the attachment isn't
// tied to a pin, and it can't be held open.
const (
	ByLink   By = "bpf_link"    // to a cgroup, Linux 5.8: links of 5.7 say nothing of themselves
	ByProg   By = "prog_attach" // to a cgroup: BPF_PROG_ATTACH with BPF_F_ALLOW_MULTI
	ByTCX    By = "tcx"         // to a device, Linux 6.6: a link
	ByClsact By = "clsact"      // to a device: a filter of the clsact qdisc
)

func (by By) isLink() bool { return by == ByLink || by == ByTCX }

// pin is the path by which an attachment is pinned: its link, or its program.
func (at Attachment) pin(pins bpf.Pins) string {
	if at.By.isLink() {
		return filepath.Join(pins.Links(), at.Target.pinName(at.Hook))
	}
	return filepath.Join(pins.Progs(), at.Target.pinName(at.Hook))
}

// Config says what is to be attached, and to what.
type Config struct {
	Pins     bpf.Pins
	Target   Target
	Programs Programs
	Journal  *instance.Journal // of the programs that we attach; nil: none is kept
	Links    objects.Links     // of the machine, to find those of ours whose pins are gone
	Proc     string            // proc mount that shows other programs' owners, for messages; "" for /proc

	qdiscs map[int]string // of all devices, where many are looked at; nil: each lists them
}

// Change says what was done to a thing that was to be there.
type Change string

// What can be done to a thing.
const (
	Kept    Change = "kept"    // was so already
	Added   Change = "added"   // wasn't there
	Changed Change = "changed" // was there, and different
	Removed Change = "removed" // was there, and isn't wanted
)

// Result says what happened at one hook.
type Result struct {
	Hook    string         `json:"hook"`
	Change  Change         `json:"change"`
	By      By             `json:"by"`
	Program ebpf.ProgramID `json:"program_id"`
	Note    string         `json:"note,omitempty"`

	at Attachment
}

// PinOf is the path by which a hook's attachment is pinned.
func (r Result) PinOf(pins bpf.Pins) string { return r.at.pin(pins) }

// Attached are programs that serve, and that can still be taken back.
type Attached struct {
	Hooks []Result
	// Gone says that the device is not there, or has vanished meanwhile: nothing is attached, pinned or recorded for it.
	Gone bool

	*ladder
	progs  map[string]*ebpf.Program   // loaded by this run, by hook; nil if none was needed
	serves map[ebpf.ProgramID]bool    // programs that are to stay
	former map[string][]*ebpf.Program // ours that were attached without a link, by hook
	front  map[string]bool            // hooks at which ours is to be attached anew, before those of others
	// replaced are links whose pins lead to new ones now.
	replaced []link.Link
	undo     []func() error // in the order of doing
}

// Attach loads and attaches the programs at every hook that needs one, in the order of cfg.Programs. All or nothing: on
// an error the former programs run again. A hook whose program is already the one that would be loaded is left alone,
// so that a second run changes no program id.
//
// A device that is gone, or goes meanwhile, is no error: see Attached.Gone. One that has another name than cfg says is
// left as it is: ErrRenamed.
//
// ErrConflict: a foreign program keeps ours out; the error names it.
func Attach(cfg Config) (*Attached, error) { return attachFirst(cfg, nil) }

// attachFirst attaches at some hooks anew, before the programs of others.
func attachFirst(cfg Config, front map[string]bool) (*Attached, error) {
	l, err := open(cfg)
	if _, isDevice := cfg.Target.(Device); isDevice && errors.Is(err, os.ErrNotExist) {
		a := &Attached{ladder: &ladder{cfg: cfg}}
		if err := a.forgetGone(); err != nil {
			return nil, ExplainRights(err)
		}
		return a, nil
	}
	if err != nil {
		return nil, err
	}
	a := &Attached{ladder: l, serves: map[ebpf.ProgramID]bool{}, former: map[string][]*ebpf.Program{}, front: front}
	if err := a.attachAll(); err != nil {
		if l.site.gone() {
			if err := a.forgetGone(); err != nil {
				return nil, errors.Join(ExplainRights(err), a.Close())
			}
			return a, nil
		}
		return nil, errors.Join(ExplainRights(err), a.Rollback(), a.Close())
	}
	return a, nil
}

// forgetGone removes what is left of a device that has vanished: its links and filters went with it.
func (a *Attached) forgetGone() error {
	a.Gone, a.Hooks, a.undo, a.replaced = true, nil, nil, nil
	return forgetGone(a.cfg)
}

func (a *Attached) attachAll() error {
	if d, ok := a.site.(*openDevice); ok {
		if err := d.renamed(); err != nil {
			return err
		}
	}
	for _, h := range a.cfg.Programs.Hooks() {
		at := Attachment{a.cfg.Target, h, best(a.cfg.Target)}
		ensure := a.ensureProg
		if at.By.isLink() {
			ensure = a.ensureLink
		}
		res := Result{Hook: h.Name, By: at.By, at: at}
		err := ensure(&res)
		if err == nil {
			a.serves[res.Program] = true
			if !a.cfg.Target.newRunsFirst() {
				err = a.detachOrphans(h)
			}
		}
		if err != nil {
			return fmt.Errorf("attach %s: %w", h.Name, err)
		}
		res.at.By = res.By
		a.Hooks = append(a.Hooks, res)
	}
	return a.recordKept()
}

// program gives the loaded program of a hook; the first call loads all, and records them.
func (a *Attached) program(h bpf.Hook) (*ebpf.Program, ebpf.ProgramID, error) {
	if a.progs == nil {
		progs, err := a.cfg.Programs.Load()
		if err != nil {
			return nil, 0, err
		}
		a.progs = progs
		if err := a.record(progs); err != nil {
			return nil, 0, err
		}
	}
	p := a.progs[h.Name]
	id, err := programID(p)
	return p, id, err
}

// Commit makes the attachment final: programs of ours that no longer serve are
// detached, the way there before the way back. An error means that one of them
// is still attached: a waste, but no harm, as what it sees is translated
// already.
func (a *Attached) Commit() error {
	if a.Gone {
		return nil
	}
	var errs []error
	for _, h := range a.reversed() {
		errs = append(errs, a.detachOthers(h))
	}
	a.undo = nil
	if a.site.gone() { // below 6.6 nothing else may say so
		return a.forgetGone()
	}
	return errors.Join(errs...)
}

// Rollback brings the former programs back, in reverse order. After Commit it
// does nothing.
func (a *Attached) Rollback() error {
	if a.Gone {
		return nil
	}
	var errs []error
	for i := len(a.undo) - 1; i >= 0; i-- {
		errs = append(errs, a.undo[i]())
	}
	a.undo, a.replaced = nil, nil
	bpf.RemoveEmptyDirs(a.cfg.Pins)
	if a.site.gone() {
		return a.forgetGone()
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("bring the former programs back: %w", err)
	}
	return nil
}

// Close closes handles; what is attached stays.
func (a *Attached) Close() error {
	var errs []error
	for _, p := range a.progs {
		errs = append(errs, p.Close())
	}
	a.progs = nil
	return errors.Join(append(errs, a.close())...)
}

func programID(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("read program info: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}
