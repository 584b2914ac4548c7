package attach

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/firsthop/firsthop/bpf"
)

// ErrContested says that somebody attaches programs before ours again and again: they stay where they are until the
// interval of the Keeper is over.
var ErrContested = errors.New("others attach before our programs again and again")

// Ahead is a program, or a filter of another kind, of somebody else's that packets pass before ours.
type Ahead struct {
	By      By             `json:"by"`
	Program ebpf.ProgramID `json:"program_id,omitempty"` // 0: a filter that is no program
	What    string         `json:"what"`                 // its id, name and owner
	// Fixed says that ours can't be put before it: it is of tcx, and ours is a filter.
	Fixed bool `json:"fixed,omitempty"`
}

func (a Ahead) String() string { return a.What }

// Place says where ours is in the order of one hook.
type Place struct {
	Hook     string  `json:"hook"`
	Attached bool    `json:"attached"`
	First    bool    `json:"first"`
	Ahead    []Ahead `json:"ahead,omitempty"` // in the order in which they run
}

// movable reports whether attaching anew would bring ours before something.
func (p Place) movable() bool {
	return slices.ContainsFunc(p.Ahead, func(a Ahead) bool { return !a.Fixed })
}

// Order reads, and changes nothing: for each hook that gets a program whether ours runs first, and who runs before it. A
// device that is gone has an error that matches os.ErrNotExist.
func Order(cfg Config) ([]Place, error) {
	l, err := open(cfg)
	if err != nil {
		return nil, err
	}
	defer l.close()
	var out []Place
	for _, h := range cfg.Programs.Hooks() {
		found, err := l.place(h)
		switch {
		case err != nil && l.site.gone():
			return nil, fmt.Errorf("read the order at %s: %w", cfg.Target, os.ErrNotExist)
		case err != nil:
			return nil, ExplainRights(err)
		case len(found) == 0:
			out = append(out, Place{Hook: h.Name})
		default:
			out = append(out, found[0].Place)
		}
	}
	return out, nil
}

// place finds the programs of ours at a hook, in the order in which they run, and what runs before the first.
func (l *ladder) place(h bpf.Hook) (found []HookState, err error) {
	pins := l.cfg.Pins.Dir != ""
	var pinned, linked ebpf.ProgramID
	if pins {
		pinned, _ = pinnedProgram(l.progPin(h), h) // what is there instead is reported by the one who attaches
		linked, _ = linkedProgram(l.linkPin(h), l.cfg.Target, h)
	}
	list, err := l.site.programs(h)
	if err != nil {
		return nil, fmt.Errorf("list programs of %s: %w", l.cfg.Target, err)
	}
	var ahead []placed
	for _, at := range list {
		ours, err := l.isOurs(h, at.id, pinned, linked)
		if err != nil {
			return nil, err
		}
		if !ours {
			ahead = append(ahead, at)
			continue
		}
		st := HookState{Place: Place{Hook: h.Name, Attached: true, First: len(ahead) == 0}, Program: at.id, By: l.cfg.Target.by(at.filter == nil)}
		for _, other := range ahead {
			st.Ahead = append(st.Ahead, l.describe(other, st.By))
		}
		found = append(found, st)
		ahead = nil
	}
	return found, nil
}

// isOurs reports whether an attached program is ours: one that a pin leads to, that the programs' own object knows, or
// that the journal has.
func (l *ladder) isOurs(h bpf.Hook, id, pinned, linked ebpf.ProgramID) (bool, error) {
	if id == 0 || id == pinned || id == linked {
		return id != 0, nil
	}
	p, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // went away since
	}
	if err != nil {
		return false, fmt.Errorf("open program %d: %w", id, err)
	}
	defer p.Close()
	known, err := l.cfg.Programs.Inspect(p)
	if err != nil || known.Ours {
		return known.Ours, err
	}
	return l.orphan(h, p)
}

func (l *ladder) describe(at placed, ours By) Ahead {
	a := Ahead{By: l.cfg.Target.by(at.filter == nil), Program: at.id}
	var parts []string
	if at.id != 0 {
		parts = append(parts, nameProgram(at.id, l.cfg.Proc))
	}
	switch {
	case at.filter != nil:
		parts = append(parts, at.filter.String())
	case at.link != 0:
		parts = append(parts, fmt.Sprintf("tcx link %d", at.link))
	default:
		parts = append(parts, string(a.By))
	}
	a.What = strings.Join(parts, ", ")
	a.Fixed = ours == ByClsact && at.filter == nil
	return a
}

// What a Keeper does if nothing else is said.
const (
	DefaultRestores        = 5
	DefaultRestoreInterval = 10 * time.Minute
)

// Keeper keeps our programs the first at the hooks of devices. Another agent may do the same for its own: so it restores
// the order of a device only a few times in an interval. The zero value is ready. Not safe for concurrent use.
type Keeper struct {
	Restores int           // of one device in Interval; 0: DefaultRestores
	Interval time.Duration // 0: DefaultRestoreInterval
	Now      func() time.Time

	done map[string][]time.Time // when the order of a device was restored, by its pins' name
}

// Restored is what was found and done at one device.
type Restored struct {
	Found []Place  // the order as it was
	Hooks []Result // what was attached anew; none: nothing was to be done, or could be
}

// Restore looks at the order of a device at which ours are attached, and brings ours to the head where something of others
// came before it: programs are loaded again and attached before all others, and only then the former ones are detached.
// The other hooks are ensured to be attached, as by Attach. Nothing of others is moved or detached.
//
// ErrContested: that was done too often lately; the error names who is before ours. A device that is gone is no error.
func (k *Keeper) Restore(cfg Config) (r Restored, err error) {
	if r.Found, err = Order(cfg); errors.Is(err, os.ErrNotExist) {
		return Restored{}, forgetGone(cfg)
	} else if err != nil {
		return r, err
	}
	front := map[string]bool{}
	var who []string
	for _, p := range r.Found {
		if p.movable() {
			front[p.Hook] = true
			who = append(who, fmt.Sprintf("%s: %v", p.Hook, p.Ahead))
		}
	}
	if len(front) == 0 || !k.allowed(cfg.Target) {
		if len(front) > 0 {
			err = fmt.Errorf("%s: %w: %s", cfg.Target, ErrContested, strings.Join(who, "; "))
		}
		return r, err
	}
	a, err := attachFirst(cfg, front)
	if err != nil {
		return r, err
	}
	for _, res := range a.Hooks {
		if res.Change != Kept {
			r.Hooks = append(r.Hooks, res)
		}
	}
	return r, errors.Join(a.Commit(), a.Close())
}

// allowed reports whether a device's order may be restored now, and notes that it is.
func (k *Keeper) allowed(t Target) bool {
	limit, interval, now := k.Restores, k.Interval, time.Now
	if limit == 0 {
		limit = DefaultRestores
	}
	if interval == 0 {
		interval = DefaultRestoreInterval
	}
	if k.Now != nil {
		now = k.Now
	}
	at := now()
	for name, times := range k.done { // of all devices, as they come and go
		if times = slices.DeleteFunc(times, func(t time.Time) bool { return at.Sub(t) >= interval }); len(times) == 0 {
			delete(k.done, name)
		} else {
			k.done[name] = times
		}
	}
	name := t.pinName(bpf.Hook{})
	if len(k.done[name]) >= limit {
		return false
	}
	if k.done == nil {
		k.done = map[string][]time.Time{}
	}
	k.done[name] = append(k.done[name], at)
	return true
}
