package attach

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/firsthop/firsthop/bpf"
)

// State is what the kernel says of one hook now.
type State struct {
	Hook     string         `json:"hook"`
	Attached bool           `json:"attached"`
	By       By             `json:"by,omitempty"`
	Program  ebpf.ProgramID `json:"program_id,omitempty"`
	CgroupID uint64         `json:"cgroup_id,omitempty"` // of a link; 0 there: its cgroup died
	Foreign  []string       `json:"foreign,omitempty"`   // other programs at the same hook

	current bool // what Attach would load
}

// Inspect reads, and changes nothing: what is attached at every hook of a
// cgroup. maps may be nil where there is no table; nothing is ours then.
func Inspect(pins bpf.Pins, maps *bpf.Maps, cgroup string) ([]State, error) {
	l, err := open(Config{Pins: pins, Target: Cgroup{Path: cgroup}, Programs: Balancer{Maps: maps}})
	if err != nil {
		return nil, err
	}
	defer l.close()
	var out []State
	for _, h := range l.cfg.Programs.AllHooks() {
		st, err := l.state(h)
		if err != nil {
			return nil, ExplainRights(err)
		}
		out = append(out, st)
	}
	return out, nil
}

func (l *ladder) state(h bpf.Hook) (State, error) {
	st := State{Hook: h.Name}
	err := l.each(h, nil, func(p *ebpf.Program) error {
		known, err := l.cfg.Programs.Inspect(p)
		if err != nil {
			return err
		}
		if known.Ours {
			st.Attached, st.By, st.Program, st.current = true, l.cfg.Target.by(false), known.ID, known.Current
		} else {
			st.Foreign = append(st.Foreign, fmt.Sprintf("%d %q", known.ID, known.Name))
		}
		return nil
	})
	if err != nil || l.cfg.Pins.Dir == "" {
		return st, err
	}
	pinned, err := link.LoadPinnedLink(l.linkPin(h), nil) // the kernel opens links only for reading and writing
	if err != nil {
		return st, nil // what is there instead is reported by the one who attaches
	}
	defer pinned.Close()
	if info, err := pinned.Info(); err == nil && info.Cgroup() != nil {
		st.CgroupID = info.Cgroup().CgroupId
		if info.Program == st.Program {
			st.By = l.cfg.Target.by(true)
		}
	}
	return st, nil
}

// Plan says what Attach would do, and changes nothing. Program is the one that is there now.
func Plan(cfg Config) ([]Result, error) {
	l, err := open(cfg)
	if err != nil {
		return nil, err
	}
	defer l.close()
	wanted := cfg.Programs.Hooks()
	var out []Result
	for _, h := range cfg.Programs.AllHooks() {
		st, err := l.state(h)
		if err != nil {
			return nil, err
		}
		res := Result{Hook: h.Name, Change: Added, Program: st.Program}
		switch needed := slices.ContainsFunc(wanted, func(w bpf.Hook) bool { return w.Name == h.Name }); {
		case !needed && !st.Attached:
			continue
		case !needed:
			res.Change = Removed
		case st.current:
			res.Change = Kept
		case st.Attached:
			res.Change = Changed
		}
		out = append(out, res)
	}
	return out, nil
}

// CheckAttached asks the kernel whether an attachment still serves a cgroup: whether at each hook the program is
// attached, or another one that uses one of the maps. An init stage, or a table that grows, exchanges programs: then
// others are attached than those that are known. It needs no more than a few system calls.
func CheckAttached(cgroup string, hooks []Result, maps []ebpf.MapID) error {
	dir, err := os.Open(cgroup)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	var lost []string
	for _, res := range hooks {
		h, _ := bpf.HookByName(res.Hook)
		_, ids, err := queryFlags(dir, h.Attach)
		if err != nil {
			return fmt.Errorf("list programs of %s: %w", cgroup, err)
		}
		ours := func(id ebpf.ProgramID) bool { return usesOneOf(id, maps) }
		if !slices.Contains(ids, res.Program) && !slices.ContainsFunc(ids, ours) {
			lost = append(lost, res.Hook)
		}
	}
	if len(lost) > 0 {
		return fmt.Errorf("not attached to %s: %s", cgroup, strings.Join(lost, ", "))
	}
	return nil
}

// InUse reports whether a program that is attached at one of cfg's hooks uses a map. In doubt it does not.
func InUse(cfg Config, m *ebpf.Map) bool {
	l, err := open(cfg)
	if err != nil {
		return false
	}
	defer l.close()
	info, err := m.Info()
	if err != nil {
		return false
	}
	id, _ := info.ID()
	return slices.ContainsFunc(cfg.Programs.AllHooks(), func(h bpf.Hook) bool {
		at, err := l.site.programs(h)
		return err == nil && slices.ContainsFunc(at, func(p placed) bool { return p.id != 0 && usesOneOf(p.id, []ebpf.MapID{id}) })
	})
}

// usesOneOf reports whether a program uses one of the maps, as far as can be told.
func usesOneOf(id ebpf.ProgramID, maps []ebpf.MapID) bool {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return false
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return false
	}
	ids, _ := info.MapIDs()
	return slices.ContainsFunc(ids, func(id ebpf.MapID) bool { return slices.Contains(maps, id) })
}
