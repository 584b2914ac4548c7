package attach

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
)

// Config says where and how the load balancer is to run.
type Config struct {
	Pins     bpf.Pins
	Maps     *bpf.Maps
	Cgroup   string // directory of the v2 hierarchy; all processes in it and below are served
	CgroupID uint64 // its id, as links have it (mounts.CgroupID)
	Features bpf.Features
	Balancer bpf.Balancer
	Record   Record        // of the programs that we attach; nil: none is kept
	Links    objects.Links // of the machine, to find those of ours whose pins are gone
	Proc     string        // proc mount that shows other programs' owners, for messages; "" for /proc
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
}

// By is the way in which a program is attached.
type By string

// The ways, the better first. What is lost with the second: an attachment
// isn't tied to a pin, and a change of programs has both attached for an
// instant (harmless: the second sees an address that is a backend already).
const (
	ByLink By = "bpf_link"    // Linux 5.8: those of 5.7 say nothing of themselves
	ByProg By = "prog_attach" // BPF_PROG_ATTACH with BPF_F_ALLOW_MULTI
)

// Attached is a load balancer that serves, and that can still be taken back.
type Attached struct {
	Hooks []Result

	cfg    Config
	cgroup *os.File
	progs  map[string]*ebpf.Program   // loaded by this run, by hook; nil if none was needed
	serves map[ebpf.ProgramID]bool    // programs that are to stay
	former map[string][]*ebpf.Program // ours that were attached without a link, by hook
	undo   []func() error             // in the order of doing
	closes []func() error
}

// Attach loads and attaches the programs at every hook that the balancer
// needs, the way back first. All or nothing: on an error the former programs
// run again. A hook whose program is already the one that would be loaded is
// left alone, so that a second run changes no program id.
//
// ErrConflict: a foreign program stands in the way; the error names it.
func Attach(cfg Config) (*Attached, error) {
	dir, err := os.Open(cfg.Cgroup)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	a := &Attached{cfg: cfg, cgroup: dir, serves: map[ebpf.ProgramID]bool{}, former: map[string][]*ebpf.Program{}}
	if err := a.attachAll(); err != nil {
		return nil, errors.Join(ExplainRights(err), a.Rollback(), a.Close())
	}
	return a, nil
}

func (a *Attached) attachAll() error {
	ensure := a.ensureProg
	if a.cfg.Features.Link {
		ensure = a.ensureLink
	}
	for _, h := range a.cfg.Balancer.Hooks(a.cfg.Features) {
		result, err := ensure(h)
		if err == nil {
			err = a.detachOrphans(h)
		}
		if err != nil {
			return fmt.Errorf("attach %s: %w", h.Name, err)
		}
		a.serves[result.Program] = true
		a.Hooks = append(a.Hooks, result)
	}
	return a.noteKept()
}

// program gives the loaded program of a hook; the first call loads all.
func (a *Attached) program(h bpf.Hook) (*ebpf.Program, error) {
	if a.progs == nil {
		progs, err := bpf.LoadPrograms(a.cfg.Maps, a.cfg.Balancer, a.cfg.Features)
		if err != nil {
			return nil, err
		}
		a.progs = progs
		if err := a.note(progs); err != nil {
			return nil, err
		}
	}
	return a.progs[h.Name], nil
}

// current reports whether a program is what this run would load.
func (a *Attached) current(p *ebpf.Program) (bool, error) {
	l, err := bpf.Inspect(p, a.cfg.Maps)
	if err != nil {
		return false, err
	}
	return a.cfg.Balancer.Current(l, a.cfg.Maps, a.cfg.Features), nil
}

// Changed reports whether Attach changed anything.
func (a *Attached) Changed() bool {
	for _, h := range a.Hooks {
		if h.Change != Kept {
			return true
		}
	}
	return false
}

// Commit makes the attachment final: programs of ours that no longer serve are
// detached, the way there before the way back. An error means that one of them
// is still attached: a waste, but no harm, as what it sees is translated
// already.
func (a *Attached) Commit() error {
	var errs []error
	hooks := bpf.Hooks()
	for i := len(hooks) - 1; i >= 0; i-- {
		errs = append(errs, a.detachOthers(hooks[i]))
	}
	a.undo = nil
	return errors.Join(errs...)
}

// Rollback brings the former programs back, in reverse order. After Commit it
// does nothing.
func (a *Attached) Rollback() error {
	var errs []error
	for i := len(a.undo) - 1; i >= 0; i-- {
		errs = append(errs, a.undo[i]())
	}
	a.undo = nil
	bpf.RemoveEmptyDirs(a.cfg.Pins)
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
	for _, c := range a.closes {
		errs = append(errs, c())
	}
	a.closes, a.progs = nil, nil
	errs = append(errs, a.cgroup.Close())
	return errors.Join(errs...)
}

func programID(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("read program info: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}
