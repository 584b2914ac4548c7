package expected

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/onsi/ginkgo/v2/types"
)

func TestParse(t *testing.T) {
	list, err := Parse("# a comment\n\n[sig-network] Services a # no packets yet\n  [sig-network] DNS b [Conformance] # asks # twice\n")
	if err != nil || len(list) != 2 || list["[sig-network] Services a"] != "no packets yet" || list["[sig-network] DNS b [Conformance]"] != "asks # twice" {
		t.Errorf("got %v, %q", err, list)
	}
	for text, says := range map[string]string{"a\n": "line 1", "a # x\nb #\n": "line 2", "a # x\na # y\n": "twice"} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %v, want %q", text, err, says)
		}
	}
}

// spec is one of a report.
func spec(name string, state types.SpecState, message string) types.SpecReport {
	return types.SpecReport{
		ContainerHierarchyTexts: []string{"[sig-network] X"}, LeafNodeType: types.NodeTypeIt, LeafNodeText: name, State: state,
		Failure: types.Failure{Message: message},
	}
}

func report(t *testing.T, specs ...types.SpecReport) Results {
	t.Helper()
	data, err := json.Marshal([]types.Report{{SpecReports: specs}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := ReadReport(data)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReadReport(t *testing.T) {
	setup := spec("", types.SpecStateFailed, "no node is ready")
	setup.LeafNodeType = types.NodeTypeSynchronizedBeforeSuite
	r := report(t,
		spec("passes [Conformance]", types.SpecStatePassed, ""), spec("fails [Conformance]", types.SpecStateFailed, "x"), spec("takes too long", types.SpecStateTimedout, "x"),
		spec("is stuck", types.SpecStatePanicked, "x"), spec("needs a cloud", types.SpecStateSkipped, "no cloud"), spec("was not asked for", types.SpecStateSkipped, ""),
		setup)
	if len(r.Passed) != 1 || len(r.Failed) != 3 || len(r.Skipped) != 1 || !strings.Contains(strings.Join(r.Broken, ""), "no node is ready") {
		t.Errorf("%+v", r)
	}
	if want := "1 of 4 passed; of Conformance 1 of 2; 1 can't run on such a cluster"; r.String() != want {
		t.Errorf("got %q, want %q", r, want)
	}
	if _, err := ReadReport([]byte("{}")); err == nil {
		t.Error("what is no report is taken")
	}
}

func TestDifferences(t *testing.T) {
	passed, failed := types.SpecStatePassed, types.SpecStateFailed
	list := List{"[sig-network] X a": "why"}
	for _, tc := range []struct {
		name    string
		results Results
		whole   bool
		want    []string
	}{
		{"as expected", report(t, spec("a", failed, ""), spec("b", passed, "")), true, nil},
		{"another fails", report(t, spec("a", failed, ""), spec("b", failed, "")), true, []string{"failed: [sig-network] X b"}},
		{"one of the list passes", report(t, spec("a", passed, "")), true, []string{"passed, remove it from the list of expected failures: [sig-network] X a"}},
		{"one of the list is gone", report(t, spec("b", passed, "")), true, []string{"expected to fail, and did not run: [sig-network] X a"}},
		{"one of the list was not asked for", report(t, spec("b", passed, "")), false, nil},
		{"nothing ran", report(t), true, []string{"no test ran"}},
	} {
		if got := list.Differences(tc.results, tc.whole); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}
