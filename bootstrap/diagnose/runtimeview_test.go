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
		{"cut off from the API", RuntimeStatus{Proven: now, Troubles: []string{"no API server answers"}}, []string{"serving; proven", "; but no API server answers"}},
		{"not proven any more", RuntimeStatus{Proven: now.Add(-time.Hour), ProofError: "not translated"}, []string{"as far as table and attachment tell", "proven 60 minutes ago", "last proof failed: not translated"}},
		{"never proven", RuntimeStatus{ProofError: "not translated"}, []string{"never proven by the runtime"}},
	} {
		got := tc.rt.proofSentence()
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
}
