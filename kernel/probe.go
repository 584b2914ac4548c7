package kernel

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotSupported is what a probe returns when the kernel said no. Any other
// error means that the probe could not tell.
var ErrNotSupported = errors.New("not supported")

// Answer is what a probe found.
type Answer string

// The three answers. "No" is only said when the kernel said so: a refusal for
// lack of rights is Unknown.
const (
	Yes     Answer = "yes"
	No      Answer = "no"
	Unknown Answer = "unknown"
)

// String gives the answer in words for people.
func (a Answer) String() string {
	if a == Unknown {
		return "could not tell"
	}
	return string(a)
}

// Feature describes one ability of a kernel.
type Feature struct {
	Name      string  `json:"name"`             // short and stable: cgroup-link
	Sentence  string  `json:"feature"`          // what it is
	Since     Version `json:"since"`            // the first mainline release that has it
	RHEL      string  `json:"rhel,omitempty"`   // which RHEL 8 kernels have it although they say 4.18
	RHELBuild []int   `json:"-"`                // 4.18.0-N from which on RHEL 8 is known to have it
	Option    string  `json:"option,omitempty"` // the build option that it hangs on
	Needed    bool    `json:"needed"`           // without it the node is not supported
	WithoutIt string  `json:"without_it"`       // what is lost
}

// Probe asks the running kernel about one Feature.
type Probe struct {
	Feature
	// atInit marks the optional features that the init stage has to know;
	// the needed ones always run.
	atInit bool
	run    func(Config) error
}

// Result is a Probe's answer.
type Result struct {
	Feature
	Answer    Answer        `json:"answer"`
	Detail    string        `json:"detail,omitempty"`    // the error behind a no or a could not tell
	NoRights  bool          `json:"no_rights,omitempty"` // could not tell, because the kernel refused us (EPERM, EACCES)
	Forbidden bool          `json:"forbidden,omitempty"` // not asked: Config.Forbid has it
	Anomaly   string        `json:"anomaly,omitempty"`   // set by Judge: missing although the version should have it
	Took      time.Duration `json:"took_ns"`
}

// Remark is what the feature is when it is there, what is lost and why when it is not.
func (r Result) Remark() string {
	switch {
	case r.Answer == Yes:
		return r.Sentence
	case r.Forbidden:
		return "forbidden by configuration; " + r.WithoutIt
	case r.Anomaly != "":
		return r.Anomaly + "; " + r.WithoutIt
	case r.Answer == Unknown:
		return r.Detail
	}
	return r.WithoutIt
}

// Config says what to look at and how strictly.
type Config struct {
	Root          string   // prefix for the host's files: "" on the host
	IgnoreVersion bool     // accept a version below the minimum, if every needed probe passes
	All           bool     // run every probe, not only those that init needs
	Forbid        []string // names of features to be treated as absent, to try the lower rungs
}

// Validate returns an error that names an unknown feature in Forbid and
// lists the known ones.
func (c Config) Validate() error {
	var known []string
	for _, p := range Probes() {
		known = append(known, p.Name)
	}
	for _, name := range c.Forbid {
		if !slices.Contains(known, name) {
			slices.Sort(known)
			return fmt.Errorf("forbid the feature %q: there is none of that name; known are %s", name, strings.Join(known, ", "))
		}
	}
	return nil
}

// Run asks the kernel: the needed features and those of bpf.Features, or with
// Config.All every one. The results are in the order of Probes. Nothing that it
// creates outlives the call. The error is that of Validate.
func Run(c Config) ([]Result, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	var probes []Probe
	for _, p := range Probes() {
		if p.Needed || p.atInit || c.All {
			probes = append(probes, p)
		}
	}
	noRights := c.refusesBPF()
	results := make([]Result, len(probes))
	var next atomic.Int32
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 4) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(probes); i = int(next.Add(1)) - 1 {
				results[i] = probes[i].ask(c, noRights)
			}
		})
	}
	wg.Wait()
	return results, nil
}

// Ask asks the kernel for one feature, by its name. One that is forbidden, unknown or could not be told is not had.
func Ask(c Config, name string) bool {
	for _, p := range Probes() {
		if p.Name == name {
			return p.ask(c, c.refusesBPF()).Answer == Yes
		}
	}
	return false
}

// ask runs one probe and sorts its error.
func (p Probe) ask(c Config, noRights bool) Result {
	switch {
	case c.forbids(p.Name):
		return Result{Feature: p.Feature, Answer: No, Forbidden: true, Detail: "forbidden by configuration"}
	case noRights && !slices.Contains(askedWithoutRights, p.Name):
		return p.sort(errBeforeCapBPF)
	}
	start := time.Now()
	r := p.sort(p.run(c))
	r.Took = time.Since(start)
	return r
}

func (p Probe) sort(err error) Result {
	r := Result{Feature: p.Feature}
	switch {
	case err == nil:
		r.Answer = Yes
	case errors.Is(err, ErrNotSupported):
		r.Answer, r.Detail = No, err.Error()
	default:
		r.Answer, r.Detail = Unknown, err.Error()
		r.NoRights = errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
	}
	return r
}
