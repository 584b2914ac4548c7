package diagnose

import (
	"strings"
	"testing"
	"time"

	"github.com/firsthop/firsthop/bootstrap"
	"github.com/firsthop/firsthop/natinit/attach"
	"github.com/firsthop/firsthop/natinit/proof"
)

func TestProofSentenceIsTheRuntimes(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		name string
		rt   RuntimeStatus
		want []string
	}{
		{"proven", RuntimeStatus{Proven: now}, []string{"serving; proven ", "by the runtime"}},
		{"cut off from the API", RuntimeStatus{Proven: now, CutOff: "no API server answers", Troubles: []string{"no API server answers"}}, []string{"cut off from the API: no API server answers; what was last known is served, proven ", "by the runtime"}},
		{"cut off, and not proven any more", RuntimeStatus{Proven: now, CutOff: "no API server answers", ProofError: "not translated"}, []string{"cut off from the API: ", "is served, as far as table and attachment tell", "last proof failed: not translated"}},
		{"something else goes wrong", RuntimeStatus{Proven: now, Troubles: []string{"changes wait"}}, []string{"serving; proven", "; but changes wait"}},
		{"it has just started", RuntimeStatus{Since: now.Add(-3 * time.Second)}, []string{"serving; not proven by the runtime yet, which started 3 seconds ago"}},
		{"not proven any more", RuntimeStatus{Proven: now.Add(-time.Hour), ProofError: "not translated"}, []string{"as far as table and attachment tell", "proven 60 minutes ago", "last proof failed: not translated"}},
		{"never proven", RuntimeStatus{ProofError: "not translated"}, []string{"never proven by the runtime"}},
	} {
		got := tc.rt.proofSentence()
		if tc.rt.CutOff != "" && strings.HasPrefix(got, "serving") || tc.rt.well() != (tc.rt.CutOff+tc.rt.ProofError == "" && tc.rt.Troubles == nil) {
			t.Errorf("%s: %q, well: %t", tc.name, got, tc.rt.well())
		}
		for _, w := range tc.want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: %q lacks %q", tc.name, got, w)
			}
		}
	}
	rt := RuntimeStatus{Proven: now}
	last := &bootstrap.Report{ExitCode: bootstrap.ExitOK, Proofs: []proof.Proof{{OK: true, Got: proof.Answered, Time: now.Add(-30 * time.Minute)}}}
	st := Status{Runtime: &rt, Last: last, Services: 1}
	st.Hooks = append(st.Hooks, attach.State{Hook: "connect4", Attached: true})
	if st.conclude(false); !strings.Contains(st.Sentence, "ago by the runtime") {
		t.Errorf("the sentence is init's: %q", st.Sentence)
	}
	if rt = (RuntimeStatus{Since: now}); st.Grade() != OK {
		t.Errorf("a runtime that has just started is %s", st.Grade())
	}
	if st.conclude(false); !strings.Contains(st.Sentence, "by the runtime yet") {
		t.Errorf("the sentence is init's: %q", st.Sentence)
	}
	if rt.CutOff = "no API server answers"; st.Grade() != Warn {
		t.Errorf("a runtime that is cut off is %s", st.Grade())
	}
}
