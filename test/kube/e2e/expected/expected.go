// Package expected compares the results of Kubernetes' end-to-end tests with a list of those that are expected to fail.
package expected

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/onsi/ginkgo/v2/types"
)

// List has the tests that are expected to fail, with the reason of each.
type List map[string]string

// Parse reads a list: a name and, after " # ", a reason on each line. Empty lines and those that begin with # are comments.
func Parse(text string) (List, error) {
	list := List{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, _ := strings.Cut(line, " # ")
		name, reason = strings.TrimSpace(name), strings.TrimSpace(reason)
		switch _, twice := list[name]; {
		case reason == "":
			return nil, fmt.Errorf("line %d: %q has no reason: want NAME # REASON", i+1, name)
		case twice:
			return nil, fmt.Errorf("line %d: %q is there twice", i+1, name)
		}
		list[name] = reason
	}
	return list, nil
}

// Results are those of one run.
type Results struct {
	Passed, Failed map[string]bool   // by name; in Failed also what was interrupted or timed out
	Skipped        map[string]string // by themselves, with the reason: they can't run on such a cluster
	Conformance    map[string]bool   // those of Passed and Failed that every cluster must pass
	Broken         []string          // what failed and is no test, as the preparation of all
}

// ReadReport reads what ginkgo writes by --json-report.
func ReadReport(data []byte) (Results, error) {
	var reports []types.Report
	r := Results{Passed: map[string]bool{}, Failed: map[string]bool{}, Skipped: map[string]string{}, Conformance: map[string]bool{}}
	if err := json.Unmarshal(data, &reports); err != nil {
		return r, fmt.Errorf("read ginkgo's report: %w", err)
	}
	for _, report := range reports {
		for _, spec := range report.SpecReports {
			r.add(spec)
		}
		if len(report.SpecialSuiteFailureReasons) > 0 && len(r.Failed) == 0 {
			r.Broken = append(r.Broken, report.SpecialSuiteFailureReasons...)
		}
	}
	return r, nil
}

func (r *Results) add(spec types.SpecReport) {
	name := spec.FullText()
	failed := spec.State.Is(types.SpecStateFailureStates)
	switch {
	case spec.LeafNodeType != types.NodeTypeIt:
		if failed {
			r.Broken = append(r.Broken, fmt.Sprintf("%s: %s", spec.LeafNodeType, spec.Failure.Message))
		}
		return
	case failed:
		r.Failed[name] = true
	case spec.State.Is(types.SpecStatePassed):
		r.Passed[name] = true
	case spec.State.Is(types.SpecStateSkipped) && spec.Failure.Message != "": // else it was not asked for
		r.Skipped[name] = spec.Failure.Message
		return
	default:
		return
	}
	if strings.Contains(name, "[Conformance]") {
		r.Conformance[name] = true
	}
}

// String counts them.
func (r Results) String() string {
	passed := 0
	for name := range r.Conformance {
		if r.Passed[name] {
			passed++
		}
	}
	return fmt.Sprintf("%d of %d passed; of Conformance %d of %d; %d can't run on such a cluster",
		len(r.Passed), len(r.Passed)+len(r.Failed), passed, len(r.Conformance), len(r.Skipped))
}

// Differences are what a run has and a list has not, and the other way round. whole: every test of the list was asked for.
func (l List) Differences(r Results, whole bool) (out []string) {
	out = append(out, r.Broken...)
	for _, name := range slices.Sorted(maps.Keys(r.Failed)) {
		if _, listed := l[name]; !listed {
			out = append(out, "failed: "+name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l)) {
		_, skipped := r.Skipped[name]
		switch {
		case r.Passed[name]:
			out = append(out, "passed, remove it from the list of expected failures: "+name)
		case whole && !r.Failed[name] && (skipped || len(r.Passed)+len(r.Failed) > 0):
			out = append(out, "expected to fail, and did not run: "+name)
		}
	}
	if len(r.Passed)+len(r.Failed) == 0 {
		out = append(out, "no test ran")
	}
	return out
}
