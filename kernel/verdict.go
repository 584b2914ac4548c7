package kernel

import (
	"errors"
	"fmt"
	"strings"

	"github.com/firsthop/firsthop/bpf"
)

// The states in which a kernel is not accepted. Report.Err wraps one of them.
var (
	// ErrUnsupported: the kernel can't carry the dataplane, or is older
	// than what we promise to work on.
	ErrUnsupported = errors.New("kernel not supported")
	// ErrNoRights: a needed probe was refused for lack of rights. The
	// kernel may well do; Report.Advice says what to change.
	ErrNoRights = errors.New("kernel support not known for lack of rights")
	// ErrUndetermined: a needed probe failed for another reason (no
	// memory, no descriptors), or did not run.
	ErrUndetermined = errors.New("kernel support not known")
)

// Verdict is the outcome in one word.
type Verdict string

// The verdicts, one for each error of Report.Err.
const (
	Supported    Verdict = "supported"
	Unsupported  Verdict = "unsupported"
	NoRights     Verdict = "no_rights"
	Undetermined Verdict = "undetermined"
)

// Report is the verdict and all that led to it.
type Report struct {
	Verdict  Verdict  `json:"verdict"`
	Sentence string   `json:"sentence"`          // the verdict and its first reason, for an operator
	Reasons  []string `json:"reasons,omitempty"` // one for each thing that speaks against the kernel, or for an exception
	Advice   string   `json:"advice,omitempty"`  // what to do about it
	// Degradations are optional features that are missing, and what that means.
	Degradations []string `json:"losses,omitempty"`
	Floor        Floor    `json:"floor"`
	Host         Host     `json:"host"`
	Memlock      *Memlock `json:"memlock,omitempty"`
	Results      []Result `json:"features"`
}

// Check inspects the host, raises RLIMIT_MEMLOCK where the kernel needs it, runs the
// probes and judges. The error is about the Config; what was found out about
// the kernel is in the report, see Report.Err.
func Check(c Config) (Report, error) {
	if err := c.Validate(); err != nil {
		return Report{}, err
	}
	host := Inspect(c.Root)
	host.Privileges = c.privileges(host.Privileges)
	memlock := c.raiseMemlock(host)
	results, err := Run(c)
	if err != nil {
		return Report{}, err
	}
	report := Judge(host, results, c)
	report.note(memlock)
	return report, nil
}

// note adds what became of RLIMIT_MEMLOCK: a limit that could not be raised is
// a lack of rights that nothing else shows, as the kernel says EPERM for it.
func (r *Report) note(m Memlock) {
	r.Memlock = &m
	if m.Error == "" || r.Verdict != NoRights {
		return
	}
	former := r.Advice
	r.Advice = "RLIMIT_MEMLOCK " + m.String()
	if len(r.Host.Privileges.Missing) > 0 {
		r.Advice = former + "; " + r.Advice
	}
	r.Sentence = strings.Replace(r.Sentence, former, r.Advice, 1)
}

// Judge draws the verdict. It is pure: the same host, results and Config
// give the same report on any machine.
//
// A needed feature that is missing refuses always. A version below the
// minimum refuses unless Config.IgnoreVersion is set. A needed feature that
// could not be asked for is not taken for granted.
func Judge(h Host, results []Result, c Config) Report {
	r := Report{Floor: floorOf(h), Host: h}
	var no, unknown, noRights []Result
	answered := make(map[string]bool)
	for _, result := range results {
		answered[result.Name] = true
		if result.Answer == No && !result.Forbidden {
			result.Anomaly = anomaly(h, result.Feature)
		}
		r.Results = append(r.Results, result)
		switch {
		case result.Answer == Yes:
		case !result.Needed:
			r.Degradations = append(r.Degradations, degradation(result))
		case result.Answer == No:
			no = append(no, result)
		case result.NoRights:
			noRights = append(noRights, result)
		default:
			unknown = append(unknown, result)
		}
	}
	for _, p := range neededProbes() {
		if !answered[p.Name] {
			unknown = append(unknown, Result{Feature: p.Feature, Answer: Unknown, Detail: "the probe did not run"})
		}
	}
	for _, result := range no {
		r.Reasons = append(r.Reasons, missing(result))
	}
	tooOld := r.judgeFloor(c)
	for _, result := range append(noRights, unknown...) {
		r.Reasons = append(r.Reasons, fmt.Sprintf("could not tell whether the kernel has %s (%s): %s", result.Sentence, result.Name, result.Detail))
	}
	switch {
	case len(no) > 0 || tooOld:
		r.Verdict = Unsupported
	case len(noRights) > 0:
		r.Verdict = NoRights
		r.Advice = h.Privileges.Advice()
	case len(unknown) > 0:
		r.Verdict = Undetermined
		r.Advice = "run `firsthop check` again; if it stays, the details above name the call that failed"
	default:
		r.Verdict = Supported
	}
	r.Sentence = r.sentence(len(no), len(noRights)+len(unknown), tooOld)
	return r
}

// judgeFloor adds the reason that the version gives, and tells whether it
// alone refuses.
func (r *Report) judgeFloor(c Config) (tooOld bool) {
	if r.Floor.Met {
		return false
	}
	reason := fmt.Sprintf("%s is below the minimum for %s, %s", r.Host.Release.Text, r.Floor.Family, r.Floor.Minimum)
	if r.Floor.Unknown {
		reason = fmt.Sprintf("the kernel release %q can't be read, so it can't be compared with the minimum, %s", r.Host.Release.Text, r.Floor.Minimum)
	}
	if c.IgnoreVersion {
		r.Reasons = append(r.Reasons, reason+"; accepted because the version is to be ignored (--ignore-kernel-version)")
		return false
	}
	r.Reasons = append(r.Reasons, reason)
	return true
}

// sentence puts the verdict into words that an operator can act on.
func (r Report) sentence(no, unknown int, tooOld bool) string {
	kernel := "Linux " + r.Host.Release.Text
	names := func(answer Answer) string {
		var names []string
		for _, result := range r.Results {
			if result.Needed && result.Answer == answer {
				names = append(names, result.Name)
			}
		}
		return strings.Join(names, ", ")
	}
	switch {
	case no > 0 && tooOld:
		return fmt.Sprintf("%s is not supported: it is below the minimum for %s, %s, and lacks what is needed: %s", kernel, r.Floor.Family, r.Floor.Minimum, names(No))
	case no > 0 && !r.Floor.Met:
		return fmt.Sprintf("%s is not supported, although its version is to be ignored: it lacks what is needed: %s", kernel, names(No))
	case no > 0:
		return fmt.Sprintf("%s is not supported: it is new enough (minimum for %s: %s) but lacks what is needed: %s", kernel, r.Floor.Family, r.Floor.Minimum, names(No))
	case tooOld && r.Floor.Unknown:
		return fmt.Sprintf("%s is not supported: its release can't be compared with the minimum, %s; --ignore-kernel-version accepts it if every needed probe passes", kernel, r.Floor.Minimum)
	case tooOld && unknown > 0:
		return fmt.Sprintf("%s is not supported: it is below the minimum for %s, %s", kernel, r.Floor.Family, r.Floor.Minimum)
	case tooOld:
		return fmt.Sprintf("%s is not supported: it is below the minimum for %s, %s; every needed probe passes, so --ignore-kernel-version would accept it", kernel, r.Floor.Family, r.Floor.Minimum)
	case r.Verdict == NoRights:
		return fmt.Sprintf("could not tell whether %s is supported, for lack of rights: %s", kernel, r.Advice)
	case unknown > 0:
		return fmt.Sprintf("could not tell whether %s is supported: %s", kernel, r.Reasons[len(r.Reasons)-1])
	case !r.Floor.Met:
		return fmt.Sprintf("%s is accepted: below the minimum for %s, %s, but every needed probe passes and the version is to be ignored", kernel, r.Floor.Family, r.Floor.Minimum)
	}
	return fmt.Sprintf("%s is supported: at or above the minimum for %s, %s, and every needed probe passes", kernel, r.Floor.Family, r.Floor.Minimum)
}

// missing is the reason that a needed feature gives when it is absent.
func missing(result Result) string {
	s := fmt.Sprintf("the kernel lacks %s (%s), which Linux has since %s", result.Sentence, result.Name, result.Since)
	switch {
	case result.Forbidden:
		s = fmt.Sprintf("%s (%s) is forbidden by configuration", result.Sentence, result.Name)
	case result.Anomaly != "":
		s += "; " + result.Anomaly
	case result.RHEL != "":
		s += "; " + result.RHEL
	}
	return s + "; without it " + result.WithoutIt
}

func degradation(result Result) string {
	word := "no " + result.Name
	if result.Answer == Unknown {
		word = "could not tell about " + result.Name
	}
	if result.Forbidden {
		word += ", forbidden by configuration"
	} else {
		word += fmt.Sprintf(" (Linux %s)", result.Since)
	}
	return word + ": " + result.WithoutIt
}

// anomaly explains a feature that is missing although the version says that
// it should be there: "missing although 5.15 has it since 5.8: …".
func anomaly(h Host, f Feature) string {
	version := ""
	switch el, _ := h.EL(); {
	case !f.Since.IsZero() && h.Release.AtLeast(f.Since):
		version = fmt.Sprintf("missing although %s has it since %s", h.Version(), f.Since)
	case el == 8 && f.RHELBuild != nil && compareNumbers(h.Release.Build, f.RHELBuild) >= 0:
		version = fmt.Sprintf("missing although %s has it in RHEL 8 (%s.0-%d has it)", h.Release.Text, elVersion, f.RHELBuild[0])
	default:
		return ""
	}
	var causes []string
	if h.Lockdown != "none" {
		state := "lockdown"
		if h.Lockdown != "" {
			state = "lockdown (now: " + h.Lockdown + ")"
		}
		causes = append(causes, state)
	}
	if h.Privileges.Seccomp {
		causes = append(causes, "seccomp (a filter is in force)")
	}
	if f.Option != "" {
		causes = append(causes, "a build without "+f.Option)
	}
	if len(causes) == 0 {
		return version
	}
	return version + ": " + strings.Join(causes, ", or ")
}

// Err returns nil for a supported kernel, else an error that wraps
// ErrUnsupported, ErrNoRights or ErrUndetermined and says the sentence.
func (r Report) Err() error {
	switch r.Verdict {
	case Supported:
		return nil
	case Unsupported:
		return fmt.Errorf("%w: %s", ErrUnsupported, r.Sentence)
	case NoRights:
		return fmt.Errorf("%w: %s", ErrNoRights, r.Sentence)
	}
	return fmt.Errorf("%w: %s", ErrUndetermined, r.Sentence)
}

// Has tells whether a probe found the feature. What was not asked or could
// not be told is not had: a lower rung always works.
func (r Report) Has(name string) bool {
	for _, result := range r.Results {
		if result.Name == name {
			return result.Answer == Yes
		}
	}
	return false
}

// Features gives what the programs and their attachment may make use of.
func (r Report) Features() bpf.Features {
	return bpf.Features{
		Link:        r.Has(FeatureLink),
		Batch:       r.Has(FeatureBatch),
		NetnsCookie: r.Has(FeatureNetnsCookie),
		GetPeername: r.Has(FeatureGetpeername),
		ContextSock: r.Has(FeatureContextSock),
		SetRetval:   r.Has(FeatureSetRetval),
	}
}
