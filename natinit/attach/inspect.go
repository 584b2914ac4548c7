package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
}

// Inspect reads, and changes nothing: what is attached at every hook of a
// cgroup. maps may be nil where there is no table; nothing is ours then.
func Inspect(pins bpf.Pins, maps *bpf.Maps, cgroup string) ([]State, error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	var out []State
	for _, h := range bpf.Hooks() {
		st, err := inspectHook(pins, maps, dir, h)
		if err != nil {
			return nil, ExplainRights(err)
		}
		out = append(out, st)
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

func inspectHook(pins bpf.Pins, maps *bpf.Maps, cgroup *os.File, h bpf.Hook) (State, error) {
	st := State{Hook: h.Name}
	err := Each(cgroup, h, func(p *ebpf.Program) error {
		l, err := bpf.Inspect(p, maps)
		if err != nil {
			return err
		}
		if l.Ours {
			st.Attached, st.By, st.Program = true, ByProg, l.ID
		} else {
			st.Foreign = append(st.Foreign, fmt.Sprintf("%d %q", l.ID, l.Name))
		}
		return nil
	})
	if err != nil {
		return st, err
	}
	l, err := link.LoadPinnedLink(filepath.Join(pins.Links(), h.Name), nil) // the kernel opens links only for reading and writing
	if errors.Is(err, os.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return st, nil // what stands there instead is reported by the one who attaches
	}
	defer l.Close()
	if info, err := l.Info(); err == nil && info.Cgroup() != nil {
		st.CgroupID = info.Cgroup().CgroupId
		if info.Program == st.Program {
			st.By = ByLink
		}
	}
	return st, nil
}
