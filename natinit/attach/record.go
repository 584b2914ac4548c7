package attach

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/natinit/instance"
)

// Record remembers the programs that we attached. They stay attached when
// their pins and maps are gone from sight with a bpffs (one that is unmounted
// lazily, or below another), and could then not be told from a stranger's.
type Record interface {
	// Note is called before programs are attached.
	Note([]RecordedProgram) error
	// Noted reports whether Note was called for it, by this run or a former one.
	Noted(RecordedProgram) bool
	// Empty reports whether nothing was ever noted, as on a fresh node.
	Empty() bool
}

// RecordedProgram identifies a program: ids aren't given out twice before all
// others were, and a tag is a hash of the instructions.
type RecordedProgram struct {
	Hook string
	ID   ebpf.ProgramID
	Tag  string
}

// JournalRecord keeps programs in an instance's journal. Without a journal
// nothing is known, and nothing can be noted.
type JournalRecord struct{ Journal *instance.Journal }

var _ Record = JournalRecord{}

// Note implements Record. Programs that are gone are forgotten: a node that is
// never rebooted would else collect those of each version.
func (r JournalRecord) Note(progs []RecordedProgram) error {
	var targets []string
	for _, p := range progs {
		targets = append(targets, p.key())
	}
	if err := r.Journal.ForgetIf(instance.KindProgram, isGone); err != nil {
		return err
	}
	return r.Journal.RecordAll(instance.KindProgram, targets)
}

// Noted implements Record.
func (r JournalRecord) Noted(p RecordedProgram) bool {
	return r.Journal != nil && r.Journal.Has(instance.KindProgram, p.key())
}

// Empty implements Record.
func (r JournalRecord) Empty() bool {
	return r.Journal == nil || !r.Journal.HasKind(instance.KindProgram)
}

// key is a program as the journal has it.
func (p RecordedProgram) key() string { return fmt.Sprintf("%s id %d tag %s", p.Hook, p.ID, p.Tag) }

// isGone reports whether the kernel has no program any more with the id in a key.
func isGone(key string) bool {
	var hook string
	var id uint32
	if n, err := fmt.Sscanf(key, "%s id %d", &hook, &id); n != 2 || err != nil {
		return false
	}
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err == nil {
		p.Close()
	}
	return errors.Is(err, os.ErrNotExist)
}

func (a *Attached) note(progs map[string]*ebpf.Program) error {
	if a.cfg.Record == nil {
		return nil
	}
	var notes []RecordedProgram
	for _, h := range bpf.Hooks() {
		p, ok := progs[h.Name]
		if !ok {
			continue
		}
		r, err := recorded(h, p)
		if err != nil {
			return err
		}
		notes = append(notes, r)
	}
	return a.cfg.Record.Note(notes)
}

// noteKept notes those that were attached already: by a version that kept no
// record, or in one that was lost.
func (a *Attached) noteKept() error {
	if a.cfg.Record == nil {
		return nil
	}
	var notes []RecordedProgram
	for _, res := range a.Hooks {
		if res.Change != Kept {
			continue
		}
		p, err := ebpf.NewProgramFromID(res.Program)
		if err != nil {
			return fmt.Errorf("open attached program: %w", err)
		}
		info, err := p.Info()
		p.Close()
		if err != nil {
			return fmt.Errorf("read program info: %w", err)
		}
		if r := (RecordedProgram{Hook: res.Hook, ID: res.Program, Tag: info.Tag}); !a.cfg.Record.Noted(r) {
			notes = append(notes, r)
		}
	}
	if len(notes) == 0 {
		return nil
	}
	return a.cfg.Record.Note(notes)
}

func recorded(h bpf.Hook, p *ebpf.Program) (RecordedProgram, error) {
	info, err := p.Info()
	if err != nil {
		return RecordedProgram{}, fmt.Errorf("read program info: %w", err)
	}
	id, _ := info.ID()
	return RecordedProgram{Hook: h.Name, ID: id, Tag: info.Tag}, nil
}

func noted(r Record, h bpf.Hook, p *ebpf.Program) (bool, error) {
	if r == nil || r.Empty() {
		return false, nil
	}
	rp, err := recorded(h, p)
	return err == nil && r.Noted(rp), err
}

// orphan reports whether an attached program is one of ours whose table is
// gone from sight. It must not run before the new one, which would then see
// nothing but backends.
func (a *Attached) orphan(h bpf.Hook, p *ebpf.Program) (bool, error) {
	ours, err := noted(a.cfg.Record, h, p)
	if err != nil || !ours {
		return false, err
	}
	l, err := bpf.Inspect(p, a.cfg.Maps)
	return err == nil && !l.Ours, err
}

// orphanLink finds the link of an orphan, to be taken over; nil: there is none.
// Below 5.8 links can't be listed.
func (a *Attached) orphanLink(h bpf.Hook) (link.Link, linkState, error) {
	if a.cfg.Record == nil || a.cfg.Record.Empty() {
		return nil, linkState{}, nil
	}
	var found link.Link
	var state linkState
	err := a.cfg.Links.Each(func(_ link.ID, l link.Link) (bool, error) {
		is, err := a.orphanState(h, l)
		if err != nil || !is.here {
			return false, err
		}
		found, state = l, is
		a.closes = append(a.closes, l.Close)
		return true, nil
	})
	if err != nil && !errors.Is(err, objects.ErrNotSupported) {
		return nil, linkState{}, err
	}
	return found, state, nil
}

func (a *Attached) orphanState(h bpf.Hook, l link.Link) (linkState, error) {
	info, err := l.Info()
	if err != nil {
		return linkState{}, nil // of another kind, or gone by now
	}
	cg := info.Cgroup()
	if cg == nil || cg.CgroupId != a.cfg.CgroupID || ebpf.AttachType(cg.AttachType) != h.Attach {
		return linkState{}, nil
	}
	p, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return linkState{}, nil // gone by now
	}
	defer p.Close()
	is, err := a.orphan(h, p)
	return linkState{here: is, program: info.Program, note: "taken over from an instance whose pins are gone"}, err
}

// detachOrphans detaches orphans that are attached without a link, now and not
// at Commit; Rollback attaches them again.
func (a *Attached) detachOrphans(h bpf.Hook) error {
	if a.cfg.Record == nil || a.cfg.Record.Empty() {
		return nil
	}
	return Each(a.cgroup, h, func(p *ebpf.Program) error {
		is, err := a.orphan(h, p)
		if err != nil || !is {
			return err
		}
		kept, err := p.Clone()
		if err != nil {
			return err
		}
		a.closes = append(a.closes, kept.Close)
		if err := detachProg(a.cgroup, h, kept); err != nil {
			return err
		}
		a.undo = append(a.undo, func() error {
			return link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(a.cgroup.Fd()), Program: kept, Attach: h.Attach, Flags: allowMulti})
		})
		return nil
	})
}

// Removal is what a record knows that is to be detached.
type Removal struct {
	Cgroup   string
	CgroupID uint64
	Record   Record
	Links    objects.Links // of the machine
}

// ErrStillAttached says that a program of ours stays attached until the next
// reboot: by a link without a pin, which a kernel that does not list links
// (below 5.8) gives nobody a handle of.
var ErrStillAttached = errors.New("still attached until the next reboot")

// Check finds out, without any change, whether Remove can find everything. Call
// it before anything else of an instance is removed: what can't be done must not
// end half-way.
func (r Removal) Check() error {
	return r.do(func(a *Attached, h bpf.Hook) error {
		_, _, err := a.orphanLink(h)
		return errors.Join(err, Each(a.cgroup, h, func(p *ebpf.Program) error {
			_, err := a.orphan(h, p)
			return err
		}))
	})
}

// Remove detaches what a record has and Remove could not know, as its pins and
// maps are gone from sight. ErrStillAttached names what it could not detach.
func (r Removal) Remove() error {
	var deadline time.Time // for all hooks together
	return r.do(func(a *Attached, h bpf.Hook) error {
		l, _, err := a.orphanLink(h)
		if l != nil {
			err = errors.Join(err, detach(l))
		}
		return errors.Join(err, a.detachOrphans(h))
	}, func(a *Attached, h bpf.Hook) error {
		if deadline.IsZero() {
			deadline = time.Now().Add(detachTime)
		}
		return a.awaitNoOrphan(h, deadline)
	})
}

// do runs each of the passes over all hooks. Handles are closed between the
// passes: below 5.9 that is what detaches a link.
func (r Removal) do(passes ...func(*Attached, bpf.Hook) error) error {
	dir, err := os.Open(r.Cgroup)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	var errs []error
	for _, pass := range passes {
		a := &Attached{cfg: Config{CgroupID: r.CgroupID, Record: r.Record, Links: r.Links}, cgroup: dir}
		for _, h := range bpf.Hooks() {
			errs = append(errs, pass(a, h))
		}
		for _, c := range a.closes {
			errs = append(errs, c())
		}
		if err := errors.Join(errs...); err != nil {
			return ExplainRights(err)
		}
	}
	return nil
}

// detachTime is what a link may take to detach after its last handle is closed.
const detachTime = 5 * time.Second

// awaitNoOrphan waits until no orphan is attached at a hook.
func (a *Attached) awaitNoOrphan(h bpf.Hook, deadline time.Time) error {
	if a.cfg.Record == nil || a.cfg.Record.Empty() {
		return nil
	}
	for ; ; time.Sleep(time.Millisecond) {
		var left []string
		err := Each(a.cgroup, h, func(p *ebpf.Program) error {
			is, err := a.orphan(h, p)
			if is {
				id, _ := programID(p)
				left = append(left, fmt.Sprintf("program %d at %s of %s", id, h.Name, a.cgroup.Name()))
			}
			return err
		})
		if err != nil || len(left) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is %w: its link has no pin, and this kernel does not list links (Linux 5.8)", strings.Join(left, ", "), ErrStillAttached)
		}
	}
}
