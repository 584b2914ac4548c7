package diagnose

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/bpf"
	"github.com/firsthop/firsthop/bpf/nat"
	"github.com/firsthop/firsthop/mounts"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/apiserver/discover"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/proof"
)

// Status is what is true of an instance now, and what was proven when.
type Status struct {
	Serving  bool                   `json:"serving"`
	Sentence string                 `json:"sentence"`
	Findings Findings               `json:"findings"` // what is wrong, and what to know
	Instance bootstrap.InstanceDirs `json:"instance"`
	Hooks    []attach.State         `json:"hooks,omitempty"`
	Table    []TableService         `json:"table,omitempty"`           // of it, the API service and what else the init stage wrote
	Services int                    `json:"services"`                  // that the whole table holds
	Settings []KernelSetting        `json:"kernel_settings,omitempty"` // that the runtime has changed
	Runtime  *RuntimeStatus         `json:"runtime,omitempty"`
	About    string                 `json:"runtime_sentence"` // the runtime in one line
	Last     *bootstrap.Report      `json:"last_init,omitempty"`
}

// ReadStatus looks at an instance and changes nothing. It is about the API
// service; of the others it only tells how many there are, and what the runtime says.
func ReadStatus(d mounts.Dirs, rt RuntimeView) (*Status, error) {
	n, err := lookAt(d)
	if err != nil {
		return nil, err
	}
	defer n.close()
	st := &Status{Runtime: rt.Runtime, About: rt.Sentence(), Last: n.last, Findings: Findings{}}
	st.Instance = bootstrap.InstanceDirs{
		BPFFS: n.mount.HostPath, Cgroup: n.cgroup.HostPath, CgroupID: n.cgroup.ID, StateDir: n.StateDir, RunDir: n.RunDir,
	}
	st.note("init", n.lastErr) // it is no more than a memory
	for _, w := range n.Examine() {
		st.note("directories", errors.New(w))
	}
	if j, err := instance.OpenJournal(n.RunDir, false); err == nil { // doctor says what is wrong with it
		st.Settings = settingsIn(j, n.HostRoot)
	}
	st.problem("bpffs", n.mount.Err())
	st.problem("cgroup", n.cgroup.Err())
	halved := errors.Is(n.mount.Err(), mounts.ErrStacked) // what is pinned below another mount may well serve
	switch {
	case n.mount.Err() != nil || n.cgroup.Err() != nil:
	case errors.Is(n.mapsErr, ErrNoTable):
		st.problem("table", n.mapsErr)
		halved = errors.Is(n.mapsErr, os.ErrNotExist)
	case n.mapsErr != nil || n.hooksErr != nil:
		return nil, errors.Join(n.mapsErr, n.hooksErr)
	default:
		if err := st.judge(n, rt); err != nil {
			return nil, err
		}
	}
	if n.neverProven() {
		st.problem("init", errors.New("what is attached was never proven: the run that attached it was killed; run `firsthop init`"))
	}
	st.conclude(halved)
	return st, nil
}

// Grade is that of the sentence.
func (st *Status) Grade() Grade {
	switch {
	case !st.Serving:
		return Fail
	case !st.Runtime.well():
		return Warn
	}
	return OK
}

func (st *Status) problem(check string, err error) {
	if err != nil {
		st.Findings.add(check, bootstrap.ExitProof, fail("", "%s", err))
	}
}

func (st *Status) note(check string, err error) {
	if err != nil {
		st.Findings.add(check, bootstrap.ExitOK, warn("", "%s", err))
	}
}

// judge looks at table and hooks.
func (st *Status) judge(n *node, rt RuntimeView) (err error) {
	indexes := n.state.Indexes()
	st.Services, st.Hooks = len(indexes), n.hooks
	api := apiIndexes(n.state, st.Last, n.StateDir, rt)
	indexes = slices.DeleteFunc(indexes, func(index uint32) bool { return !nat.InitIndexes.Contains(index) && !api[index] })
	if st.Table, err = tableOf(n.state, n.maps, indexes); err != nil {
		return err
	}
	st.Table = RuntimeView{Services: rt.inTable()}.name(st.Table, namesOfInit(n.RunDir))
	for _, svc := range st.Table {
		if len(svc.Backends) == 0 {
			st.problem("backends", fmt.Errorf("service %s has no backend", strings.Join(svc.Frontends, " ")))
		}
	}
	var sctp []string
	for k := range n.state.Frontends {
		if k.Proto == bpf.SCTP {
			sctp = append(sctp, k.String())
		}
	}
	slices.Sort(sctp)
	if len(sctp) > 0 {
		st.note("table", errors.New(Few(sctp)+": in the table, but not served: SCTP sockets never reach the connect-time hooks"))
	}
	for _, h := range st.Hooks {
		st.problem("hooks", st.judgeHook(h))
	}
	return nil
}

// Few names the first of many.
func Few(list []string) string {
	const most = 8
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}

// apiIndexes are where the API service is in the table: that of the addresses
// which the last init and the saved addresses name, and that which the runtime names.
func apiIndexes(state *nat.State, last *bootstrap.Report, stateDir string, rt RuntimeView) map[uint32]bool {
	out := map[uint32]bool{}
	for _, s := range rt.inTable() {
		if service, _, _ := strings.Cut(s.Name, ":"); service == "default/kubernetes" {
			out[s.Index] = true
		}
	}
	for _, a := range APIAddrs(last, stateDir) {
		if fe, there := state.Frontends[bpf.FrontendKeyOf(a, bpf.TCP)]; there {
			out[fe.Index] = true
		}
	}
	return out
}

// APIAddrs are the addresses of the API service, as far as they are known:
// those that the last init proved, and those that were saved.
func APIAddrs(last *bootstrap.Report, stateDir string) []netip.AddrPort {
	var out []netip.AddrPort
	add := func(a netip.AddrPort) {
		if a.IsValid() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	if last != nil {
		for _, p := range slices.Concat(last.Proofs, last.Before) {
			add(p.Service)
		}
	}
	if known, err := apiserver.Load(stateDir); err == nil {
		for _, a := range known.Services {
			add(a)
		}
	}
	return out
}

// judgeHook says what is wrong with a hook, as seen from the last report: what
// was attached then should be now.
func (st *Status) judgeHook(h attach.State) error {
	expected := strings.HasPrefix(h.Hook, "connect")
	if st.Last != nil && st.Last.ExitCode == bootstrap.ExitOK && !st.Last.DryRun {
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

func (st *Status) conclude(halved bool) {
	attached := node{hooks: st.Hooks}.attached()
	problems := st.Findings.Count(Fail)
	st.Serving = problems == 0 && attached > 0 && st.Services > 0
	switch {
	case st.Serving && st.Runtime != nil:
		st.Sentence = st.Runtime.proofSentence()
	case st.Serving && st.Last != nil && st.Last.Proven():
		p := st.Last.Proofs[0]
		st.Sentence = fmt.Sprintf("serving; proven %s: %s", discover.Ago(time.Since(p.Time)), proof.Describe(st.Last.Proofs))
		if f := st.Last.Failure(); f != nil {
			st.Sentence += fmt.Sprintf("; after that the last init failed at %s: %s", f.Step, f.Reason)
		}
	case st.Serving && st.Last != nil && st.Last.Failure() != nil:
		st.Sentence = fmt.Sprintf("serving, but the last init failed %s at %s: %s", discover.Ago(time.Since(st.Last.Time)), st.Last.Failure().Step, st.Last.Failure().Reason)
		if len(st.Last.Before) > 0 {
			st.Sentence += fmt.Sprintf("; proven before that, %s: %s", discover.Ago(time.Since(st.Last.Before[0].Time)), proof.Describe(st.Last.Before))
		}
	case st.Serving:
		st.Sentence = "serving, as far as table and attachment tell; not proven, as far as is known: `firsthop init` proves it"
	case st.Last != nil && st.Last.Scope == bootstrap.ScopeOff && problems == 0:
		st.Sentence = "not attached, by --scope off; the table is ready, and something else serves the Service addresses"
	case st.Services == 0 && attached == 0 && !halved:
		st.Sentence = "not serving: nothing is set up here"
	default:
		st.Sentence = fmt.Sprintf("not serving as it should: %d problems", problems)
	}
}
