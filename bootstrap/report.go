package bootstrap

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
	"github.com/firsthop/firsthop/natinit/proof"
)

// Result is how a step ended.
type Result string

// The results.
const (
	OK      Result = "ok"
	Skipped Result = "skipped"
	Failed  Result = "failed"
)

// StepReport is what one step did.
type StepReport struct {
	Step     string   `json:"step"`
	Result   Result   `json:"result"`
	Reason   string   `json:"reason"` // one sentence; never empty
	Millis   float64  `json:"duration_ms"`
	ExitCode ExitCode `json:"exit_code"`          // what the process exits with because of this step
	Changes  []string `json:"changes,omitempty"`  // done, or with --dry-run what would be done
	Warnings []string `json:"warnings,omitempty"` // somebody should do something
}

// Report is everything about one run of the init stage.
type Report struct {
	Version  string                  `json:"version"`
	Time     time.Time               `json:"time"`
	Millis   float64                 `json:"duration_ms"`
	DryRun   bool                    `json:"dry_run,omitempty"`
	Result   Result                  `json:"result"`
	ExitCode ExitCode                `json:"exit_code"` // also with --best-effort, where the process exits 0
	Scope    Scope                   `json:"scope,omitempty"`
	Steps    []StepReport            `json:"steps"`
	Instance InstanceDirs            `json:"instance"`
	Services []natinit.SeededService `json:"services,omitempty"`
	Servers  []Server                `json:"api_servers,omitempty"`
	Hooks    []attach.Result         `json:"hooks,omitempty"`
	Proofs   []proof.Proof           `json:"proofs,omitempty"`
	// Before are the proofs of the last run that succeeded, if this one didn't.
	Before []proof.Proof `json:"proofs_before,omitempty"`
	// AfterReboot says what of this survives a reboot, and by whose doing.
	AfterReboot string `json:"after_reboot,omitempty"`
}

// InstanceDirs are the directories that tell one instance from another.
type InstanceDirs struct {
	BPFFS    string `json:"bpffs"`
	Cgroup   string `json:"cgroup"`
	CgroupID uint64 `json:"cgroup_id,omitempty"`
	StateDir string `json:"state_dir"`
	RunDir   string `json:"run_dir"`
}

// Server is an API server address and what its probe found.
type Server struct {
	Endpoint apiserver.Endpoint `json:"endpoint"`
	State    string             `json:"state"` // live, not ready, dead, unknown
	Millis   float64            `json:"latency_ms"`
	Reason   string             `json:"reason,omitempty"` // why it isn't live
	Sources  []string           `json:"sources,omitempty"`
	Used     bool               `json:"used"` // has a slot in the table
}

// Proven reports whether every asked proof succeeded.
func (r *Report) Proven() bool {
	for _, p := range r.Proofs {
		if !p.OK {
			return false
		}
	}
	return len(r.Proofs) > 0
}

// rememberProof takes over what a former run proved, if this one proved
// nothing: a failure must not make the last success forgotten.
func (r *Report) rememberProof(runDir string) {
	if r.Proven() {
		return
	}
	former, err := LoadReport(runDir)
	switch {
	case err != nil:
	case former.Proven():
		r.Before = former.Proofs
	default:
		r.Before = former.Before
	}
}

// keepReport keeps a report of a run of the whole stage for `status`.
func keepReport(runDir string, r *Report) error {
	r.rememberProof(runDir)
	return saveReport(runDir, r)
}

// keepPersistence is for a run that touched no traffic: of the report that is
// there, it changes only what such a run does.
func keepPersistence(runDir string, r *Report) error {
	former, err := LoadReport(runDir)
	if err != nil {
		return saveReport(runDir, r)
	}
	if r.AfterReboot == "" { // it failed before it got there
		return nil
	}
	former.AfterReboot = r.AfterReboot
	return saveReport(runDir, former)
}

// Failure is the step that failed, nil if none did.
func (r *Report) Failure() *StepReport {
	for i := range r.Steps {
		if r.Steps[i].Result == Failed {
			return &r.Steps[i]
		}
	}
	return nil
}

// saveReport keeps a report for `status`. It is no more than a memory: it
// isn't synced, and the run directory is empty after a reboot.
func saveReport(runDir string, r *Report) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	if err := instance.WriteFile(filepath.Join(runDir, instance.StatusName), append(data, '\n'), instance.Writing{}); err != nil {
		return fmt.Errorf("keep report: %w", err)
	}
	return nil
}

// LoadReport reads the report of the last run with this run directory. The
// error matches os.ErrNotExist if there was none since the last reboot.
func LoadReport(runDir string) (*Report, error) {
	path := filepath.Join(runDir, instance.StatusName)
	data, err := instance.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read last report: %w", err)
	}
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("read last report: %s is damaged: %s: run `firsthop init` again", path, err)
	}
	return &r, nil
}

func Millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
