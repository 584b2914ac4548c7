package bootstrap

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/firsthop/firsthop/natinit"
	"github.com/firsthop/firsthop/natinit/apiserver"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/instance"
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
	Proofs   []Proof                 `json:"proofs,omitempty"`
	// Before are the proofs of the last run that succeeded, if this one didn't.
	Before []Proof `json:"proofs_before,omitempty"`
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

// Strength is how much a proof asks for.
type Strength string

// The strengths, the weakest first. Auto is verified where a CA of the node's
// cluster is known, and answered elsewhere.
const (
	Auto       Strength = "auto"
	Translated Strength = "translated" // a connect was translated, even if the backend refused
	Answered   Strength = "answered"   // the TCP connection was accepted
	Verified   Strength = "verified"   // TLS, with a certificate that the CA of this node's cluster signed
	Ready      Strength = "ready"      // /readyz, too, says 2xx, 401 or 403
)

// Proof is what became of a connection to one Service address.
type Proof struct {
	Service netip.AddrPort `json:"service"`
	Asked   Strength       `json:"asked"`
	Got     Strength       `json:"got,omitempty"` // empty: not even translated
	OK      bool           `json:"ok"`
	// Verified tells whether the certificate was looked at: without a CA, an
	// answer proves no more than that somebody accepts connections there.
	Verified bool           `json:"verified,omitempty"`
	Foreign  bool           `json:"foreign,omitempty"` // what answered is no API server of this cluster
	Direct   bool           `json:"direct,omitempty"`  // the connection went to Backend, not through the balancer
	Backend  netip.AddrPort `json:"backend,omitzero"`
	Cookie   uint64         `json:"socket_cookie,omitempty"`
	Millis   float64        `json:"duration_ms"`
	Attempts int            `json:"attempts"`
	Reason   string         `json:"reason,omitempty"`
	Time     time.Time      `json:"time"`
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

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
