package attach

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/objects"
	"github.com/firsthop/firsthop/natinit/instance"
)

// Target is what programs are attached to: a Cgroup or a Device. It has the ways of attaching; everything else is the
// same for all targets.
type Target interface {
	fmt.Stringer
	// links reports whether the kernel has links for it, which are better.
	links() bool
	// by is the way of attaching, by a link or without one.
	by(link bool) By
	// pinName is the name of the pin of what is attached at a hook.
	pinName(bpf.Hook) string
	// linked reports whether a link is at a hook, and whether it is attached to this target; note says to what else.
	linked(bpf.Hook, *link.Info) (atHook, here bool, note string)
	// kind is that of the target's programs in the journal.
	kind() instance.Kind
	// newRunsFirst reports whether a program that is attached runs before those that are there. Then former ones of ours
	// can stay until Commit, whatever they are; else those that nobody knows any more must go at once.
	newRunsFirst() bool
	open(Config) (site, error)
}

// best is the best way that the kernel has.
func best(t Target) By { return t.by(t.links()) }

// site is a target that is open.
type site interface {
	// programs lists what is attached at a hook, by whatever means, in the order in which it runs; nothing at a hook that
	// the kernel lacks.
	programs(bpf.Hook) ([]placed, error)
	// eachLink visits the links that may be attached here, or none where programs says which those are.
	eachLink(objects.Links, func(link.Link) (take bool, err error)) error
	// keeps reports whether a program of ours may stay as it is attached at a hook; if not, it is attached anew.
	keeps(bpf.Hook, ebpf.ProgramID) (bool, error)
	// link attaches by a link, which lives as long as its handle or a pin.
	link(bpf.Hook, *ebpf.Program) (link.Link, error)
	// attach attaches without a link, with first before all others. undo has the hook as it was, with the program of ours
	// that ran there.
	attach(h bpf.Hook, p *ebpf.Program, former []*ebpf.Program, first bool) (undo func() error, err error)
	// detach detaches what was attached without a link, and links that programs lists. A program that is not is no error.
	detach(bpf.Hook, *ebpf.Program) error
	// conflict says which program of somebody else keeps ours out of a hook, and how it is attached; "" for none. proc is
	// where its owner is looked up.
	conflict(h bpf.Hook, proc string) string
	// gone reports whether the target has vanished since it was opened.
	gone() bool
	// cleanup removes what was only made to attach programs, if nobody needs it: at the end of all.
	cleanup() error
	close() error
}

// placed is a program in its place at a hook.
type placed struct {
	id     ebpf.ProgramID // 0: a filter of another kind, which has no program
	link   link.ID        // 0: attached without one, or not known
	filter *filter        // nil: not by a filter
}

// ladder is what all that attaches, inspects and detaches has in common.
type ladder struct {
	cfg    Config
	site   site
	closes []func() error
	// recorded says that an earlier run has recorded programs: else there is no orphan, and no link need be listed.
	recorded bool
}

func open(cfg Config) (*ladder, error) {
	s, err := cfg.Target.open(cfg)
	if err != nil {
		return nil, err
	}
	recorded := cfg.Journal != nil && cfg.Journal.HasKind(cfg.Target.kind())
	return &ladder{cfg: cfg, site: s, closes: []func() error{s.close}, recorded: recorded}, nil
}

func (l *ladder) close() error {
	var errs []error
	for _, c := range l.closes {
		errs = append(errs, c())
	}
	l.closes = nil
	return errors.Join(errs...)
}

// reversed are all hooks, the way there before the way back.
func (l *ladder) reversed() []bpf.Hook {
	hooks := l.cfg.Programs.AllHooks()
	slices.Reverse(hooks)
	return hooks
}

// each calls visit for every program at a hook, but for some.
func (l *ladder) each(h bpf.Hook, but map[ebpf.ProgramID]bool, visit func(*ebpf.Program) error) error {
	ids, err := l.site.programs(h)
	if errors.Is(err, unix.EINVAL) {
		return nil // a hook that this kernel doesn't have
	}
	if err != nil {
		return fmt.Errorf("list programs of %s: %w", l.cfg.Target, err)
	}
	for _, at := range ids {
		id := at.id
		if id == 0 || but[id] {
			continue
		}
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

// selected opens the programs at a hook for which is reports true, until the ladder is closed. Those that serve now are
// not asked about: nothing is to be done about them, and each answer takes the kernel a tenth of a millisecond.
func (a *Attached) selected(h bpf.Hook, is func(*ebpf.Program) (bool, error)) (found []*ebpf.Program, err error) {
	err = a.each(h, a.serves, func(p *ebpf.Program) error {
		if ok, err := is(p); err != nil || !ok {
			return err
		}
		clone, err := p.Clone()
		if err != nil {
			return err
		}
		a.closes = append(a.closes, clone.Close)
		found = append(found, clone)
		return nil
	})
	return found, err
}
