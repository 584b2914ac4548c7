package bootstrap

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/firsthop/firsthop/bootstrap/discover"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit"
)

// Status is what is true of an instance now, and what was proven when.
type Status struct {
	Serving  bool                `json:"serving"`
	Sentence string              `json:"sentence"`
	Problems []string            `json:"problems,omitempty"`
	Notes    []string            `json:"notes,omitempty"` // what to know, and no problem
	Instance InstanceDirs        `json:"instance"`
	Hooks    []natinit.HookState `json:"hooks,omitempty"`
	Table    []TableService      `json:"table,omitempty"`
	Last     *Report             `json:"last_init,omitempty"`

	halved bool // there is a part of a table
}

// TableService is one service index of the table.
type TableService struct {
	Index     uint32           `json:"index"`
	Owner     natinit.Owner    `json:"owner"`
	Frontends []string         `json:"frontends"`
	Backends  []netip.AddrPort `json:"backends"`
	Sticky    bool             `json:"sticky,omitempty"`
	Counters  bpf.Counters     `json:"counters"`
}

// ErrNoTable says that the instance has no NAT table: init didn't run, or its
// bpffs is gone.
var ErrNoTable = errors.New("no NAT table")

// ReadTable reads the NAT table of an instance. The error matches ErrNoTable
// if there is none.
func ReadTable(d Dirs) ([]TableService, error) {
	b, err := mounts.FindBPFFS(d.mountConfig(d.BPFFS))
	if err != nil {
		return nil, err
	}
	if err := b.Err(); err != nil {
		return nil, fmt.Errorf("%w: %s", ErrNoTable, err)
	}
	maps, err := openTable(b)
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	return readTable(maps)
}

func (d Dirs) mountConfig(path string) mounts.Config {
	return mounts.Config{Root: d.Root, Path: path, Explicit: path != "", RunDir: d.RunDir}
}

// openTable opens the table for reading. The error of one that lacks some of
// its maps matches os.ErrNotExist beside ErrNoTable.
func openTable(b mounts.BPFFS) (*bpf.Maps, error) {
	maps, err := bpf.OpenMaps(bpf.PinsBelow(b.Path), true)
	if errors.Is(err, os.ErrNotExist) {
		pins := bpf.PinsBelow(b.Path)
		if entries, _ := os.ReadDir(pins.Maps()); len(entries) > 0 {
			return nil, fmt.Errorf("%w that is whole: %w: run `firsthop init`", ErrNoTable, err)
		}
		return nil, fmt.Errorf("%w below %s: run `firsthop init`", ErrNoTable, bpf.PinsBelow(b.HostPath).Dir)
	}
	return maps, err
}

func readTable(maps *bpf.Maps) ([]TableService, error) {
	state, err := nat.NewKernel(maps, bpf.Features{}).Read()
	if err != nil {
		return nil, err
	}
	out := []TableService{}
	for _, index := range state.Indexes() {
		ts := TableService{Index: index, Owner: natinit.OwnerOf(index)}
		local := false
		for _, k := range state.FrontendsOf(index) {
			ts.Frontends = append(ts.Frontends, k.String())
			flags := state.Frontends[k].Flags
			ts.Sticky = ts.Sticky || flags&bpf.FrontendSticky != 0
			local = flags&bpf.FrontendLocal != 0
		}
		ts.Backends = state.Backends(state.Words[bpf.WordAt(index, local)])
		if err := maps.Map(bpf.MapCounter).Lookup(index, &ts.Counters); err != nil {
			return nil, fmt.Errorf("read counters of service %d: %w", index, err)
		}
		out = append(out, ts)
	}
	return out, nil
}

// ReadStatus looks at an instance and changes nothing.
func ReadStatus(d Dirs) (*Status, error) {
	p := d.places()
	st := &Status{Instance: InstanceDirs{StateDir: p.stateDir, RunDir: p.runDir}}
	last, err := LoadReport(p.runDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		st.Notes = append(st.Notes, err.Error()) // it is no more than a memory
	}
	st.Last = last
	b, err := mounts.FindBPFFS(d.mountConfig(d.BPFFS))
	if err != nil {
		return nil, err
	}
	g, err := mounts.FindCgroup2(d.mountConfig(d.Cgroup))
	if err != nil {
		return nil, err
	}
	st.Instance.BPFFS, st.Instance.Cgroup, st.Instance.CgroupID = b.HostPath, g.HostPath, g.ID
	st.problem(b.Err())
	st.problem(g.Err())
	if b.Err() == nil && g.Err() == nil {
		if err := st.look(b, g); err != nil {
			return nil, err
		}
	}
	if l, err := OpenLedger(p.runDir, false); err == nil && l.Has(kindUnproven, bpf.PinsBelow(b.Path).Dir) {
		st.problem(errors.New("what is attached was never proven: the run that attached it was killed; run `firsthop init`"))
	}
	st.conclude()
	return st, nil
}

func (st *Status) problem(err error) {
	if err != nil {
		st.Problems = append(st.Problems, err.Error())
	}
}

// look reads table and hooks.
func (st *Status) look(b mounts.BPFFS, g mounts.Cgroup2) error {
	maps, err := openTable(b)
	if errors.Is(err, ErrNoTable) {
		st.problem(err)
		st.halved = errors.Is(err, os.ErrNotExist)
		return nil
	}
	if err != nil {
		return err
	}
	defer maps.Close()
	if st.Table, err = readTable(maps); err != nil {
		return err
	}
	if st.Hooks, err = natinit.Inspect(bpf.PinsBelow(b.Path), maps, g.Path); err != nil {
		return err
	}
	for _, svc := range st.Table {
		if len(svc.Backends) == 0 {
			st.problem(fmt.Errorf("service %s has no backend", strings.Join(svc.Frontends, " ")))
		}
		for _, f := range svc.Frontends {
			if strings.HasPrefix(f, bpf.SCTP.String()+"/") {
				st.Notes = append(st.Notes, f+" is in the table, but not served: SCTP sockets never reach the connect-time hooks")
			}
		}
	}
	for _, h := range st.Hooks {
		st.problem(st.judgeHook(h))
	}
	return nil
}

// judgeHook says what is wrong with a hook, as seen from the last report: what
// was attached then should be now.
func (st *Status) judgeHook(h natinit.HookState) error {
	expected := strings.HasPrefix(h.Hook, "connect")
	if st.Last != nil && st.Last.ExitCode == ExitOK && !st.Last.DryRun {
		expected = false
		for _, was := range st.Last.Hooks {
			expected = expected || was.Hook == h.Hook
		}
	}
	switch {
	case !h.Attached && h.CgroupID != 0 && h.CgroupID != st.Instance.CgroupID:
		return fmt.Errorf("%s is attached to the cgroup with id %d, not to %s (id %d): run `firsthop init`", h.Hook, h.CgroupID, st.Instance.Cgroup, st.Instance.CgroupID)
	case !h.Attached && expected:
		return fmt.Errorf("%s is not attached to %s: run `firsthop init`", h.Hook, st.Instance.Cgroup)
	}
	return nil
}

func (st *Status) conclude() {
	attached := 0
	for _, h := range st.Hooks {
		if h.Attached {
			attached++
		}
	}
	st.Serving = len(st.Problems) == 0 && attached > 0 && len(st.Table) > 0
	switch {
	case st.Serving && st.Last != nil && st.Last.Proven():
		p := st.Last.Proofs[0]
		st.Sentence = fmt.Sprintf("serving; proven %s: %s", discover.Ago(time.Since(p.Time)), describeProofs(st.Last.Proofs))
		if f := st.Last.Failure(); f != nil {
			st.Sentence += fmt.Sprintf("; after that the last init failed at %s: %s", f.Step, f.Reason)
		}
	case st.Serving && st.Last != nil && st.Last.Failure() != nil:
		st.Sentence = fmt.Sprintf("serving, but the last init failed %s at %s: %s", discover.Ago(time.Since(st.Last.Time)), st.Last.Failure().Step, st.Last.Failure().Reason)
		if len(st.Last.Before) > 0 {
			st.Sentence += fmt.Sprintf("; proven before that, %s: %s", discover.Ago(time.Since(st.Last.Before[0].Time)), describeProofs(st.Last.Before))
		}
	case st.Serving:
		st.Sentence = "serving, as far as table and attachment tell; not proven, as far as is known: `firsthop init` proves it"
	case st.Last != nil && st.Last.Scope == ScopeOff && len(st.Problems) == 0:
		st.Sentence = "not attached, by --scope off; the table is ready, and something else serves the Service addresses"
	case len(st.Table) == 0 && attached == 0 && !st.halved:
		st.Sentence = "not serving: nothing is set up here"
	default:
		st.Sentence = fmt.Sprintf("not serving as it should: %d problems", len(st.Problems))
	}
}
